"""Heartbeat: ranks that freeze, die, leave or never join, as the other ranks report them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch.distributed import HashStore, PrefixStore

from slap_fast.training.distributed.heartbeat import RankProcess, RendezvousError, process_start_time, rendezvous
from tests.fork_server import fork_server
from tests.training.heartbeat_rank import run_rank
from tests.training.ranks import free_port

TIMEOUT = 4.0


@dataclass
class Rank:
    process: BaseProcess
    commands: Connection
    log: Path

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def reply(self, timeout: float = 60.0) -> str:
        assert self.commands.poll(timeout), self.log.read_text()
        return self.commands.recv()


@contextmanager
def ranks(folder: Path, count: int, of: int | None = None) -> Iterator[list[Rank]]:
    context = fork_server()
    port, started = free_port(), list[Rank]()
    for rank in range(count):
        ours, theirs = context.Pipe()
        log = folder / f"{rank}.log"
        arguments = (port, rank, of or count, TIMEOUT, str(log), theirs)
        process = context.Process(target=run_rank, args=arguments, daemon=True)
        process.start()
        started.append(Rank(process, ours, log))
    try:
        if not of:
            assert [rank.reply() for rank in started] == ["met"] * count
        yield started
    finally:
        for each in started:
            each.process.kill()
            each.process.join()


@pytest.mark.parametrize("frozen", [1, 0], ids=["another", "the one that hosts the store"])
def test_a_frozen_rank_is_reported_and_killed_in_time(tmp_path: Path, frozen: int) -> None:
    with ranks(tmp_path, 2) as both:
        witness, victim = both[1 - frozen], both[frozen]
        began = time.monotonic()
        victim.freeze()
        witness.process.join(30)
        assert time.monotonic() - began < 2 * TIMEOUT
        assert witness.process.exitcode == 1
        victim.process.join(10)
        assert victim.process.exitcode == -signal.SIGKILL
    name = rf"rank {frozen} \(host \S+, process {victim.process.pid}\)"
    output = witness.log.read_text()
    assert re.search(
        rf"{name} has not answered for 2\.8 s; last known, since [\d:]{{8}}: in step 7; the run ends", output
    )
    assert re.search(rf"killed {name}", output)


def test_a_rank_that_resumes_reports_no_other_and_a_rank_that_left_is_not_reported(tmp_path: Path) -> None:
    with ranks(tmp_path, 2) as both:
        for rank in both:
            rank.freeze()
        time.sleep(TIMEOUT)
        for rank in both:
            rank.send(signal.SIGCONT)
        both[1].commands.send("leave")
        assert both[1].reply() == "left"
        both[1].commands.send("end")
        both[1].process.join(10)
        assert both[1].process.exitcode == 0
        both[0].process.join(TIMEOUT)
        both[0].commands.send("leave")
        assert both[0].reply() == "left"
    assert "answer" not in both[0].log.read_text() + both[1].log.read_text()


def test_a_dead_rank_is_reported_after_a_collective_call_failed(tmp_path: Path) -> None:
    with ranks(tmp_path, 2) as both:
        both[1].process.kill()
        both[0].commands.send("report")
        assert both[0].reply() == "left"
    output = both[0].log.read_text()
    assert re.search(r"rank 1 \(.*\) does not answer any more; last known, since [\d:]{8}: in step 7", output)


def test_ranks_that_never_joined_are_reported_with_those_that_did(tmp_path: Path) -> None:
    with ranks(tmp_path, 1, of=3) as one:
        assert one[0].reply().startswith(f"ranks 1, 2 of 3 did not start within {TIMEOUT:g} s; here: rank 0 (host ")


def test_a_rank_joins_the_ranks_of_its_own_restart_and_not_of_an_earlier_one() -> None:
    store, own = HashStore(), RankProcess.current(1)
    before = PrefixStore("before", store)
    store.set("restart_id", "before")
    dead = [replace(own, rank=rank, pid=own.pid + 1) for rank in range(2)]
    for rank in dead:
        before.set(str(rank.rank), json.dumps(asdict(rank)))
    before.set("all", json.dumps([asdict(rank) for rank in dead]))
    with pytest.raises(RendezvousError, match=r"^rank 0 did not start within 0\.5 s, or .* each RANK is given once"):
        rendezvous(store, 1, 2, 0.5)

    with ThreadPoolExecutor() as threads:
        late = threads.submit(rendezvous, store, 1, 2, 30.0)
        first = threads.submit(rendezvous, store, 0, 2, 30.0)
        joined = [own, RankProcess.current(0)]
        assert late.result()[1] == first.result()[1] == sorted(joined, key=lambda each: each.rank)
    # Nothing from before the restart can be read.
    part = late.result()[0]
    part.set("address", "new")
    assert first.result()[0].get("address") == b"new"
    assert not before.check(["address"])


def test_only_the_process_that_joined_is_killed() -> None:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        joined = replace(RankProcess.current(1), pid=victim.pid, start_time=process_start_time(victim.pid))
        assert joined.start_time is not None
        # The pid was reused by a later process, or is one of another host or container.
        assert not replace(joined, start_time=joined.start_time - 1.0).kill()
        assert not replace(joined, pid_namespace="another host").kill()
        assert victim.poll() is None
        assert joined.kill()
        assert victim.wait(10) == -signal.SIGKILL
        # Gone: no error.
        assert process_start_time(victim.pid) is None
        assert not joined.kill()
    finally:
        victim.kill()
        victim.wait()
