"""Ranks that freeze, die, leave or never come, as the others see them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch.distributed import HashStore, PrefixStore

from slap_fast.training.distributed.heartbeat import Identity, RendezvousError, meet
from tests.training.heartbeat_rank import live
from tests.training.ranks import free_port

TIMEOUT = 4.0


@dataclass
class Rank:
    process: BaseProcess
    orders: Connection
    log: Path

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def hears(self, timeout: float = 60.0) -> str:
        assert self.orders.poll(timeout), self.log.read_text()
        return self.orders.recv()


@contextmanager
def ranks(folder: Path, count: int, of: int | None = None) -> Iterator[list[Rank]]:
    context = get_context("forkserver")
    # Loads torch once for all.
    context.set_forkserver_preload(["tests.training.heartbeat_rank"])
    port, started = free_port(), list[Rank]()
    for rank in range(count):
        ours, theirs = context.Pipe()
        log = folder / f"{rank}.log"
        arguments = (port, rank, of or count, TIMEOUT, str(log), theirs)
        process = context.Process(target=live, args=arguments, daemon=True)
        process.start()
        started.append(Rank(process, ours, log))
    try:
        if not of:
            assert [rank.hears() for rank in started] == ["met"] * count
        yield started
    finally:
        for each in started:
            each.process.kill()
            each.process.join()


@pytest.mark.parametrize("frozen", [1, 0], ids=["another", "the one that keeps the store"])
def test_a_frozen_rank_is_named_and_killed_in_time(tmp_path: Path, frozen: int) -> None:
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
    said = witness.log.read_text()
    assert re.search(
        rf"{name} has not answered for 2\.8 s; last known, since [\d:]{{8}}: in step 7; the run ends", said
    )
    assert re.search(rf"killed {name}", said)


def test_who_was_frozen_itself_accuses_nobody_and_who_left_is_not_accused(tmp_path: Path) -> None:
    with ranks(tmp_path, 2) as both:
        for rank in both:
            rank.freeze()
        time.sleep(TIMEOUT)
        for rank in both:
            rank.send(signal.SIGCONT)
        both[1].orders.send("leave")
        assert both[1].hears() == "left"
        both[1].orders.send("end")
        both[1].process.join(10)
        assert both[1].process.exitcode == 0
        both[0].process.join(TIMEOUT)
        both[0].orders.send("leave")
        assert both[0].hears() == "left"
    assert "answer" not in both[0].log.read_text() + both[1].log.read_text()


def test_a_rank_that_died_is_named_after_a_collective_call_failed(tmp_path: Path) -> None:
    with ranks(tmp_path, 2) as both:
        both[1].process.kill()
        both[0].orders.send("report")
        assert both[0].hears() == "left"
    said = both[0].log.read_text()
    assert re.search(r"rank 1 \(.*\) does not answer any more; last known, since [\d:]{8}: in step 7", said)


def test_a_rank_that_never_came_is_named_and_so_are_those_that_did(tmp_path: Path) -> None:
    with ranks(tmp_path, 1, of=3) as one:
        assert one[0].hears().startswith(f"ranks 1, 2 of 3 did not start within {TIMEOUT:g} s; here: rank 0 (host ")


def test_a_rank_meets_those_of_its_own_life_and_not_of_one_before() -> None:
    store, own = HashStore(), Identity.own(1)
    before = PrefixStore("before", store)
    store.set("life", "before")
    dead = [replace(own, rank=rank, process=own.process + 1) for rank in range(2)]
    for rank in dead:
        before.set(str(rank.rank), json.dumps(asdict(rank)))
    before.set("all", json.dumps([asdict(rank) for rank in dead]))
    with pytest.raises(RendezvousError, match=r"^rank 0 did not start within 0\.5 s, or .* each RANK is given once"):
        meet(store, 1, 2, 0.5)

    with ThreadPoolExecutor() as threads:
        late = threads.submit(meet, store, 1, 2, 30.0)
        first = threads.submit(meet, store, 0, 2, 30.0)
        met = [own, Identity.own(0)]
        assert late.result()[1] == first.result()[1] == sorted(met, key=lambda each: each.rank)
    # Nothing of the life before is left to be read.
    part = late.result()[0]
    part.set("address", "new")
    assert first.result()[0].get("address") == b"new"
    assert not before.check(["address"])
