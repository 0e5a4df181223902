"""Each rank says that it lives and what it does, so that one that falls silent can be named."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store

from slap_fast.errors import SlapFastError
from slap_fast.training.distributed.process_stat import start_time


class RendezvousError(SlapFastError, RuntimeError):
    """Not all ranks have met."""

    retryable = True


@dataclass(frozen=True)
class Identity:
    """A rank's process, as the others know it."""

    rank: int
    host: str
    process: int
    started: int
    """Clock ticks from the host's start to the process's: a process number alone may be given to another one."""
    namespace: str
    """Equal for two processes that see the same process numbers."""

    @classmethod
    def own(cls, rank: int) -> Identity:
        return cls(rank, socket.gethostname(), os.getpid(), start_time(os.getpid()), _namespace())

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.process})"

    def kill(self) -> bool:
        """SIGKILL, which ends a stopped process too, if it is of this host; whether it was sent."""
        if self.namespace != _namespace() or self.started != start_time(self.process):
            return False
        with suppress(OSError):
            os.kill(self.process, signal.SIGKILL)
            return True
        return False


def kept_by_launcher() -> bool:
    """Whether torchrun keeps the store, and not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(store: Store, rank: int, world_size: int, timeout: float) -> tuple[Store, list[Identity]]:
    """Wait for all ranks; a part of the store that is theirs alone, and who they are.

    torchrun keeps one store through all restarts, with what earlier lives wrote. So rank 0 gives each life a new name,
    and a rank believes only a list that it is on itself.

    Raises:
        RendezvousError: some have not come within `timeout` seconds, each of them named.
    """
    own, deadline = Identity.own(rank), time.monotonic() + timeout
    life, part = "", store
    if rank == 0:
        store.set("life", uuid.uuid4().hex)
    while time.monotonic() < deadline:
        if store.check(["life"]) and (current := store.get("life").decode()) != life:
            life, part = current, PrefixStore(current, store)
            part.set(str(rank), json.dumps(asdict(own)))
        if rank == 0 and part.check([str(other) for other in range(world_size)]):
            part.set("all", json.dumps([asdict(each) for each in _present(part, world_size).values()]))
        if life and part.check(["all"]):
            ranks = [Identity(**each) for each in json.loads(part.get("all"))]
            if ranks[rank : rank + 1] == [own]:
                return part, ranks
        time.sleep(min(0.2, timeout / 10))
    present = _present(part, world_size) if life else {}
    if missing := [other for other in range(world_size) if other not in present]:
        here = ", ".join(_shortened([str(each) for each in present.values()])) or "none"
        raise RendezvousError(
            f"{_ranks(missing)} of {world_size} did not start within {timeout:g} s; here: {here}. "
            "What they say on their own hosts may tell why"
        )
    raise RendezvousError(
        f"rank 0 did not start within {timeout:g} s, or it took another process for this {own}: see that each RANK is "
        "given once"
    )


class Heartbeat:
    """Two threads: one exchanges beats through the store, the other ends the run when a rank's beats cease.

    Each rank listens to the next one, so that a store with W ranks serves 2 W small requests a second. It counts its
    own turns rather than seconds: what was stopped itself, and goes on, accuses nobody.

    Args:
        timeout: seconds; a silent rank is named, and ends the run, somewhat earlier than a collective call would.
    """

    def __init__(self, store: Store, ranks: Sequence[Identity], rank: int, timeout: float) -> None:
        self._ranks, self._own, self._next = ranks, ranks[rank], ranks[(rank + 1) % len(ranks)]
        # A connection of its own: what waits for an answer holds a connection's lock.
        self._store = PrefixStore("heartbeat", store.clone())  # type: ignore[attr-defined]  # its stub lacks it
        self._interval = min(1.0, timeout / 10)
        self._patience = round(0.7 * timeout / self._interval)
        self._doing, self._since = "starting", time.time()
        self._heard, self._beats, self._answers = "", 0, 0
        self._store.set(str(self._own.rank), self._beat(0))
        self._stopped = threading.Event()
        self._exchanging = threading.Thread(target=self._exchange, name="heartbeat", daemon=True)
        self._listening = threading.Thread(target=self._listen, name="heartbeat watch", daemon=True)

    def start(self) -> None:
        if len(self._ranks) > 1:
            self._exchanging.start()
            self._listening.start()

    def doing(self, what: str) -> None:
        """Said about this rank if it falls silent."""
        self._doing, self._since = what, time.time()

    def stop(self) -> None:
        """This rank is done: its silence means nothing from now on."""
        self._stopped.set()
        if self._exchanging.is_alive():
            self._exchanging.join(2 * self._interval)

    def report(self) -> None:
        """After a collective call failed: name who is gone. Takes a few seconds at most."""
        if len(self._ranks) == 1:
            return
        asking = threading.Thread(target=self._name_missing, daemon=True)
        asking.start()
        asking.join(5 * self._interval)
        if asking.is_alive():
            self._say(f"the store of {self._keeper()} does not answer")

    def _exchange(self) -> None:
        turn, left = 0, False
        # The store may go first at the end, and if it breaks before, so do collective calls, which say so.
        with suppress(RuntimeError):
            while not left:
                left = self._stopped.is_set()
                turn += 1
                self._store.set(str(self._own.rank), self._beat(turn, left=left))
                heard = self._store.get(str(self._next.rank)).decode()
                if heard != self._heard:
                    self._heard, self._beats = heard, self._beats + 1
                self._answers += 1
                self._stopped.wait(self._interval)

    def _listen(self) -> None:
        beats, answers, silence, mute = 0, 0, 0, 0
        while not self._stopped.wait(self._interval):
            silence = silence + 1 if beats == self._beats else 0
            mute = mute + 1 if answers == self._answers else 0
            beats, answers = self._beats, self._answers
            if not self._exchanging.is_alive():
                return
            if mute >= self._patience:
                self._store_is_mute()
                return
            if silence >= self._patience and not self._last_heard().get("left"):
                self._end(self._next, self._last_heard())

    def _store_is_mute(self) -> None:
        if kept_by_launcher():
            # Training needs it no more. If the host is cut off, collective calls time out.
            self._say(f"the store of {self._keeper()} has not answered for {self._silence()}")
        elif self._own.rank != 0:
            self._end(self._ranks[0], self._last_heard() if self._next.rank == 0 else {})

    def _end(self, silent: Identity, last: dict[str, Any]) -> None:
        self._say(f"{silent} has not answered for {self._silence()}{_last_words(last)}; the run ends")
        if silent.kill():
            self._say(f"killed {silent}")
        os._exit(1)

    def _beat(self, turn: int, *, left: bool = False) -> str:
        return json.dumps({"turn": turn, "doing": self._doing, "since": self._since, "left": left})

    def _name_missing(self) -> None:
        keys = [str(other.rank) for other in self._ranks]
        with suppress(RuntimeError):
            before = self._store.multi_get(keys)
            time.sleep(2.5 * self._interval)
            after = self._store.multi_get(keys)
            for other, first, last in zip(self._ranks, before, after, strict=True):
                words = json.loads(last)
                if first == last and not words["left"]:
                    self._say(f"{other} does not answer any more{_last_words(words)}")
                elif words["doing"] != self._doing:
                    self._say(f"{other} is elsewhere{_last_words(words)}")
            return
        self._say(f"the store of {self._keeper()} is gone")

    def _last_heard(self) -> dict[str, Any]:
        return json.loads(self._heard) if self._heard else {}

    def _silence(self) -> str:
        return f"{self._patience * self._interval:.3g} s"

    def _keeper(self) -> str:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return f"the launcher at {where}" if kept_by_launcher() else f"{self._ranks[0]} at {where}"

    def _say(self, message: str) -> None:
        with suppress(OSError):
            sys.stderr.write(f"rank {self._own.rank}: {message}\n")
            sys.stderr.flush()


def _last_words(beat: dict[str, Any]) -> str:
    if not beat:
        return ""
    return f"; last known, since {time.strftime('%H:%M:%S', time.localtime(beat['since']))}: {beat['doing']}"


def _present(store: Store, world_size: int) -> dict[int, Identity]:
    """Those who have come, by rank."""
    come = [rank for rank in range(world_size) if store.check([str(rank)])]
    return {rank: Identity(**json.loads(store.get(str(rank)))) for rank in come}


def _ranks(numbers: Sequence[int]) -> str:
    names = ", ".join(_shortened([str(number) for number in numbers]))
    return f"rank {names}" if len(numbers) == 1 else f"ranks {names}"


def _shortened(names: Sequence[str]) -> list[str]:
    return [*names[:16], f"{len(names) - 16} more"] if len(names) > 16 else list(names)


def _namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"
