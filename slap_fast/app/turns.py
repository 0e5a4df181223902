"""Turns: long work of the page, one at a time, the newest wish first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from slap_fast.app.errors import PageError


class StoppingError(PageError):
    """The page is being stopped, so what waited is not done."""


@dataclass
class _Waiting:
    group: str
    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Turns:
    """A lock of an event loop for which the group that asked last waits the shortest.

    The pictures of one search are a group: those of a new search come before what is left of earlier ones, and within
    a search they come in the order in which they were asked for.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._groups: list[str] = []  # of those that wait; the one that asked last is the last
        self._busy = False
        self._stopped = False

    @asynccontextmanager
    async def turn(self, group: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the body.

        Raises:
            StoppingError: the page is being stopped.
        """
        if self._stopped:
            raise StoppingError("the page is being stopped")
        if self._busy:
            await self._wait(group)
        self._busy = True
        try:
            yield
        finally:
            self._next()

    def stop(self) -> None:
        """End the waiting of all, now and later. What is being done goes on."""
        self._stopped = True
        for each in self._waiting:
            if not each.turn.done():
                each.turn.set_exception(StoppingError("the page is being stopped"))

    async def _wait(self, group: str) -> None:
        waiting = _Waiting(group)
        self._waiting.append(waiting)
        with contextlib.suppress(ValueError):
            self._groups.remove(group)
        self._groups.append(group)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():  # it was given the turn at the same time
                self._next()
            raise
        finally:
            self._waiting.remove(waiting)

    def _next(self) -> None:
        """Give the turn to the one that comes next, if any waits."""
        self._busy = False
        waiting = [each for each in self._waiting if not each.turn.done()]
        self._groups = [group for group in self._groups if any(each.group == group for each in waiting)]
        if waiting:
            self._busy = True  # also before the other one runs on
            next(each for each in waiting if each.group == self._groups[-1]).turn.set_result(None)
