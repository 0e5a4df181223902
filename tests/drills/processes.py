"""The processes of a drill, found by a mark in their environment wherever they hang in the process tree."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "SLAP_FAST_DRILL"


class DrillFailed(AssertionError):
    """What the drill is there to find."""


class Marked:
    """All processes that inherited this mark."""

    def __init__(self) -> None:
        self.environment = {MARK: uuid.uuid4().hex}

    def alive(self) -> dict[int, dict[str, str]]:
        """The environment of each, by process id; zombies have none and do not count."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                    variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                    if variables.get(MARK) == self.environment[MARK]:
                        found[int(folder.name)] = variables
        return found

    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        return {int(variables["RANK"]): process for process, variables in self.alive().items() if "RANK" in variables}

    def kill(self) -> None:
        for process in self.alive():
            send(process, signal.SIGKILL)


def send(process: int, number: int) -> None:
    """A signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def wait(condition: Callable[[], bool], timeout: float, what: str, every: float = 0.02) -> float:
    """Seconds until the condition held.

    Raises:
        DrillFailed: it did not within `timeout` seconds.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise DrillFailed(f"{what}: not within {timeout:g} s")
        time.sleep(every)
    return time.monotonic() - began
