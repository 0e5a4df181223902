"""Interleaved timing: order, warm-up, number of rounds and statistics."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import NamedTuple

import pytest

from benchmarks.harness import timing
from benchmarks.harness.case import Settings
from benchmarks.harness.timing import paired_ratio, quartiles, time_interleaved


class FakeStep(NamedTuple):
    name: str
    seconds: float


class FakeClock:
    """A simulated timer: a step returns its own duration."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, step: Callable[[], object], repeats: int) -> float:
        fake = step()
        assert isinstance(fake, FakeStep)
        self.calls.append((fake.name, repeats))
        return fake.seconds


def steps(**seconds: float) -> dict[str, Callable[[], object]]:
    return {name: functools.partial(FakeStep, name, value) for name, value in seconds.items()}


def test_peers_take_turns_after_a_warm_up() -> None:
    clock = FakeClock()
    samples = time_interleaved(steps(a=1.0, b=2.0, c=3.0), Settings(rounds=3), clock)
    assert [name for name, _ in clock.calls] == [*"abc", *"abcabcabc"]
    assert samples == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}


def test_short_steps_are_repeated_within_a_sample_and_long_ones_are_not() -> None:
    clock = FakeClock()
    time_interleaved(steps(short=1e-5, long=0.1), Settings(rounds=1), clock)
    assert clock.calls[-2:] == [("short", 500), ("long", 1)]


def test_cold_cache_never_repeats_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "COLD_CACHE_BYTES", 1024)
    clock = FakeClock()
    time_interleaved(steps(short=1e-5), Settings(rounds=2, cold_cache=True), clock)
    assert {repeats for _, repeats in clock.calls} == {1}


@pytest.mark.parametrize(
    ("step_seconds", "rounds"), [(1.0, 10), (10.0, 5), (20.0, 5), (30.0, 3), (90.0, 1), (1000.0, 1), (0.01, 100)]
)
def test_the_number_of_rounds_follows_the_time_limit_within_bounds(step_seconds: float, rounds: int) -> None:
    samples = time_interleaved(steps(a=step_seconds / 2, b=step_seconds / 2), Settings(seconds=10.0), FakeClock())
    assert {len(values) for values in samples.values()} == {rounds}


def test_a_step_that_took_long_in_its_check_is_not_warmed_up_again() -> None:
    clock = FakeClock()
    checked = {"long": 60.0, "short": 4.0}
    samples = time_interleaved(steps(long=50.0, short=3.0), Settings(seconds=30.0), clock, checked)
    assert [name for name, _ in clock.calls] == ["short", *["long", "short"] * 4]
    assert {len(values) for values in samples.values()} == {4}


def test_garbage_collection_is_off_while_timing_and_on_again_after_a_failure() -> None:
    seen = []

    def timer(step: Callable[[], object], repeats: int) -> float:
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise RuntimeError("died while timing")
        return 1.0

    with pytest.raises(RuntimeError, match="died"):
        time_interleaved(steps(a=1.0), Settings(rounds=5), timer)
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_quartiles_are_robust_against_one_outlier() -> None:
    assert quartiles([1.0, 2.0, 3.0, 4.0, 500.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}
    assert quartiles([2.0]) == {"q1": 2.0, "median": 2.0, "q3": 2.0}


def test_ratios_pair_the_samples_of_each_round() -> None:
    """A machine that becomes ten times slower halfway changes no ratio."""
    baseline = [2.0, 2.0, 20.0, 20.0]
    samples = [1.0, 1.0, 10.0, 10.0]
    assert paired_ratio(baseline, samples) == {"q1": 2.0, "median": 2.0, "q3": 2.0}
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])
