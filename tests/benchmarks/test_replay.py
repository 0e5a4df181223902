"""Timing by CUDA graph replay and loss of the GPU, with a simulated device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness import measure
from benchmarks.harness.case import Peer, Run, Settings
from benchmarks.harness.measure import DeviceLostError, measure_case
from benchmarks.harness.replay import MAX_COPIES, Replay, input_copies
from benchmarks.harness.report import render
from benchmarks.harness.results import build_result
from benchmarks.our_peers import VARIANTS_OF
from slap_fast.kernels.variants import VARIANTS
from tests.benchmarks import toy

GPU = Settings(device="cuda", rounds=3)


@pytest.mark.parametrize(("setup", "copies"), [(0, MAX_COPIES), (1 << 20, MAX_COPIES), (50 << 20, 3), (1 << 30, 1)])
def test_input_copies_are_several_times_as_large_as_the_cache(setup: int, copies: int) -> None:
    assert input_copies(setup, 50 << 20) == copies


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA functions that the harness calls. The timer runs a step once and returns one second."""

    def timer(step: Callable[[], object], repeats: int) -> float:
        step()
        return 1.0

    def capture(runs: Sequence[Run]) -> Replay:
        for run in runs:
            if run.step() == "waits":
                raise RuntimeError("operation not permitted when stream is capturing")
        return Replay(lambda: None, len(runs))

    monkeypatch.setattr(measure, "default_timer", lambda device: timer)
    monkeypatch.setattr("benchmarks.harness.timing.default_timer", lambda device: timer)
    monkeypatch.setattr(measure, "capture", capture)
    monkeypatch.setattr(measure, "measure_on_gpu", lambda run, setup_bytes: {"step_bytes": 1})
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50 << 20))


def _peer(name: str, step: Callable[[], object]) -> Peer:
    return Peer(name, lambda: Run(step=step, outputs=lambda: {"sum": torch.tensor(1000.0)}))


@pytest.mark.usefixtures("device")
def test_a_step_is_timed_by_replay_and_launched_from_python_or_the_reason_is_recorded() -> None:
    peers = (_peer("right", lambda: None), _peer("waiting", lambda: "waits"))
    case = replace(toy.broken_case(), peers=peers)
    measured = measure_case("toy", case, GPU)
    replayed, launched = measured["peers"]
    assert replayed["replay"] == {"copies": MAX_COPIES}
    assert replayed["time"]["median"] == 1.0 / MAX_COPIES
    assert replayed["eager"]["median"] == launched["time"]["median"] == 1.0
    assert launched["replay"] == {"reason": "RuntimeError: operation not permitted when stream is capturing"}
    assert "eager" not in launched
    table = render(build_result("toy", "Toy", [measured], replace(GPU, device="cpu")))
    assert table.splitlines()[0].endswith("| launched from Python |")
    assert (
        "waiting: timed as launched from Python, because a CUDA graph cannot capture it: RuntimeError: operation"
        in table
    )

    (row,) = measure_case("toy", replace(case, peers=peers[:1], replayable=False), GPU)["peers"]
    assert "replay" not in row
    assert row["time"]["median"] == 1.0


@pytest.mark.usefixtures("device")
def test_a_peer_that_loses_the_device_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose() -> None:
        def synchronize() -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        synchronize()

    peers = (_peer("right", lambda: None), _peer("faulty", lose), _peer("after", lambda: None))
    with pytest.raises(DeviceLostError, match="after faulty") as caught:
        measure_case("toy", replace(toy.broken_case(), peers=peers), GPU)
    monkeypatch.undo()  # or the plugin for lost devices takes this for a real one
    reasons = {row["name"]: row["reason"] for row in caught.value.measured["peers"]}
    assert {row["status"] for row in caught.value.measured["peers"]} == {"error"}
    assert reasons["faulty"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert reasons["right"] == reasons["after"] == "not run: the GPU no longer responds after faulty"


def test_every_kernel_variant_is_benchmarked() -> None:
    named = [name for names in VARIANTS_OF.values() for name in names]
    assert set(named) == set(VARIANTS)
