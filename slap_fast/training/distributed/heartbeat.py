"""Per-rank heartbeat: detects a hung or dead rank and reports which, through the store that the ranks share."""

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

import psutil
from torch.distributed import PrefixStore, Store

from slap_fast.errors import SlapFastError


class RendezvousError(SlapFastError, RuntimeError):
    """Some ranks did not join the run."""

    retryable = True


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank, as the other ranks identify it.

    Attributes:
        start_time: see `process_start_time`; the system reuses process ids.
        pid_namespace: equal for two processes that see the same process ids (one host or one container).
    """

    rank: int
    host: str
    pid: int
    start_time: float | None
    pid_namespace: str

    @classmethod
    def current(cls, rank: int) -> RankProcess:
        return cls(rank, socket.gethostname(), os.getpid(), process_start_time(os.getpid()), _pid_namespace())

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    def kill(self) -> bool:
        """Send SIGKILL, which also ends a stopped process; False if the process is gone or not of this host."""
        if self.pid_namespace != _pid_namespace() or self.start_time != process_start_time(self.pid):
            return False
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            return True
        return False


def process_start_time(pid: int) -> float | None:
    """Seconds from the host's boot to the start of a process; None if the process is gone, or without /proc."""
    # RuntimeError: a sandbox whose /proc/stat has no boot time.
    with suppress(psutil.Error, OSError, RuntimeError):
        # Relative to the boot: `create_time` alone moves whenever the host's clock is set.
        boot_time = psutil.boot_time()
        return round(psutil.Process(pid).create_time() - boot_time, 2)
    return None


def store_is_launchers() -> bool:
    """Whether torchrun hosts the store, rather than rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def rendezvous(store: Store, rank: int, world_size: int, timeout: float) -> tuple[Store, list[RankProcess]]:
    """Wait until all ranks have joined.

    torchrun reuses one store across restarts, so keys carry a per-restart prefix, which rank 0 draws. A rank accepts a
    member list only if the list holds its own process: any other list is from before the restart.

    Returns:
        The part of the store under the prefix, and the processes of all ranks.

    Raises:
        RendezvousError: names the ranks that have not joined within `timeout` seconds.
    """
    own, deadline = RankProcess.current(rank), time.monotonic() + timeout
    restart_id, members = "", store
    if rank == 0:
        store.set("restart_id", uuid.uuid4().hex)
    while time.monotonic() < deadline:
        if store.check(["restart_id"]) and (current := store.get("restart_id").decode()) != restart_id:
            restart_id, members = current, PrefixStore(current, store)
            members.set(str(rank), json.dumps(asdict(own)))
        if rank == 0 and members.check([str(other) for other in range(world_size)]):
            members.set("all", json.dumps([asdict(each) for each in _joined(members, world_size).values()]))
        if restart_id and members.check(["all"]):
            ranks = [RankProcess(**each) for each in json.loads(members.get("all"))]
            if ranks[rank : rank + 1] == [own]:
                return members, ranks
        time.sleep(min(0.2, timeout / 10))
    joined = _joined(members, world_size) if restart_id else {}
    if missing := [other for other in range(world_size) if other not in joined]:
        here = ", ".join(_shortened([str(each) for each in joined.values()])) or "none"
        raise RendezvousError(
            f"{_ranks(missing)} of {world_size} did not start within {timeout:g} s; here: {here}. "
            "The output of the missing ranks, on their own hosts, may show why"
        )
    raise RendezvousError(
        f"rank 0 did not start within {timeout:g} s, or another process has the rank of {own}: check that each RANK is "
        "given once"
    )


class Heartbeat:
    """Two threads: one exchanges beats through the store, the other ends the run when another rank's beats stop.

    Each rank watches the next one, so that the store serves 2 small requests a second for each rank. Silence is counted
    in this rank's own turns, not in seconds: a rank that was stopped itself and resumes reports no other rank.

    Args:
        timeout: seconds; a silent rank is reported, and ends the run, after 0.7 of it: before a collective call fails.
    """

    def __init__(self, store: Store, ranks: Sequence[RankProcess], rank: int, timeout: float) -> None:
        self._ranks, self._own, self._next = ranks, ranks[rank], ranks[(rank + 1) % len(ranks)]
        # A separate connection: a request that waits for its answer holds the connection's lock.
        self._store = PrefixStore("heartbeat", store.clone())  # type: ignore[attr-defined]  # missing in its stub
        self._interval = min(1.0, timeout / 10)
        self._patience = round(0.7 * timeout / self._interval)
        self._activity, self._since = "starting", time.time()
        self._heard, self._beats, self._answers = "", 0, 0
        self._store.set(str(self._own.rank), self._beat(0))
        self._stopped = threading.Event()
        self._exchange_thread = threading.Thread(target=self._exchange, name="heartbeat", daemon=True)
        self._watch_thread = threading.Thread(target=self._watch, name="heartbeat watch", daemon=True)

    def start(self) -> None:
        if len(self._ranks) > 1:
            self._exchange_thread.start()
            self._watch_thread.start()

    def set_activity(self, activity: str) -> None:
        """What this rank does now; the other ranks report it if this rank falls silent."""
        self._activity, self._since = activity, time.time()

    def stop(self) -> None:
        """This rank is done: the other ranks ignore its silence from now on."""
        self._stopped.set()
        if self._exchange_thread.is_alive():
            self._exchange_thread.join(2 * self._interval)

    def report_missing_ranks(self) -> None:
        """After a failed collective call, print which ranks are gone. Takes 5 seconds at most."""
        if len(self._ranks) == 1:
            return
        query = threading.Thread(target=self._print_missing_ranks, daemon=True)
        query.start()
        query.join(5 * self._interval)
        if query.is_alive():
            self._print(f"the store of {self._store_host()} does not answer")

    def _exchange(self) -> None:
        turn, left = 0, False
        # At the end the store may close first; if it fails earlier, collective calls fail too and report it.
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

    def _watch(self) -> None:
        beats, answers, silent_turns, unanswered_turns = 0, 0, 0, 0
        while not self._stopped.wait(self._interval):
            silent_turns = silent_turns + 1 if beats == self._beats else 0
            unanswered_turns = unanswered_turns + 1 if answers == self._answers else 0
            beats, answers = self._beats, self._answers
            if not self._exchange_thread.is_alive():
                return
            if unanswered_turns >= self._patience:
                self._handle_silent_store()
                return
            if silent_turns >= self._patience and not self._last_heard().get("left"):
                self._end_run(self._next, self._last_heard())

    def _handle_silent_store(self) -> None:
        if store_is_launchers():
            # Training no longer needs the store. If the host lost its network, collective calls time out.
            self._print(f"the store of {self._store_host()} has not answered for {self._silence()}")
        elif self._own.rank != 0:
            self._end_run(self._ranks[0], self._last_heard() if self._next.rank == 0 else {})

    def _end_run(self, silent: RankProcess, last: dict[str, Any]) -> None:
        self._print(f"{silent} has not answered for {self._silence()}{_last_activity(last)}; the run ends")
        if silent.kill():
            self._print(f"killed {silent}")
        os._exit(1)

    def _beat(self, turn: int, *, left: bool = False) -> str:
        return json.dumps({"turn": turn, "activity": self._activity, "since": self._since, "left": left})

    def _print_missing_ranks(self) -> None:
        keys = [str(other.rank) for other in self._ranks]
        with suppress(RuntimeError):
            before = self._store.multi_get(keys)
            time.sleep(2.5 * self._interval)
            after = self._store.multi_get(keys)
            for other, first, last in zip(self._ranks, before, after, strict=True):
                beat = json.loads(last)
                if first == last and not beat["left"]:
                    self._print(f"{other} does not answer any more{_last_activity(beat)}")
                elif beat["activity"] != self._activity:
                    self._print(f"{other} is not in the same call{_last_activity(beat)}")
            return
        self._print(f"the store of {self._store_host()} is gone")

    def _last_heard(self) -> dict[str, Any]:
        return json.loads(self._heard) if self._heard else {}

    def _silence(self) -> str:
        return f"{self._patience * self._interval:.3g} s"

    def _store_host(self) -> str:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return f"the launcher at {where}" if store_is_launchers() else f"{self._ranks[0]} at {where}"

    def _print(self, message: str) -> None:
        with suppress(OSError):
            sys.stderr.write(f"rank {self._own.rank}: {message}\n")
            sys.stderr.flush()


def _last_activity(beat: dict[str, Any]) -> str:
    if not beat:
        return ""
    return f"; last known, since {time.strftime('%H:%M:%S', time.localtime(beat['since']))}: {beat['activity']}"


def _joined(store: Store, world_size: int) -> dict[int, RankProcess]:
    joined = [rank for rank in range(world_size) if store.check([str(rank)])]
    return {rank: RankProcess(**json.loads(store.get(str(rank)))) for rank in joined}


def _ranks(numbers: Sequence[int]) -> str:
    names = ", ".join(_shortened([str(number) for number in numbers]))
    return f"rank {names}" if len(numbers) == 1 else f"ranks {names}"


def _shortened(names: Sequence[str]) -> list[str]:
    return [*names[:16], f"{len(names) - 16} more"] if len(names) > 16 else list(names)


def _pid_namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"
