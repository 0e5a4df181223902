"""Interleaved timing: A B C A B C, so that a machine which slows down slows every peer alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.harness.case import Settings

MIN_SAMPLE_SECONDS = 5e-3
MIN_ROUNDS = 5
MAX_ROUNDS = 100
# For fewer rounds than MIN_ROUNDS: how often they may take the time that was allowed.
MOST_OVERTIME = 10
WARM_AFTER_SECONDS = 5.0
COLD_CACHE_BYTES = 512 * 2**20

Timer = Callable[[Callable[[], object], int], float]


def time_interleaved(
    steps: Mapping[str, Callable[[], object]],
    settings: Settings,
    timer: Timer | None = None,
    checked_seconds: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call of each step, one sample a round; sample i of every step is from round i.

    Each step has run before, in its check, and is warmed up once more here, unless it took `checked_seconds` of
    WARM_AFTER_SECONDS there: what runs for so long is warm after its first percent. A sample repeats a short step until
    it lasts about 5 ms, so that the clock's resolution does not matter; with a cold cache it never repeats.

    There are at least MIN_ROUNDS, but where these would take more than MOST_OVERTIME times `settings.seconds`: then as
    many as do not, or one.
    """
    timer = timer or default_timer(settings.device)
    sweep = cache_sweeper(settings.device) if settings.cold_cache else None
    repeats = {}
    warm_seconds = dict(checked_seconds or {})
    for name, step in steps.items():
        if warm_seconds.get(name, 0.0) < WARM_AFTER_SECONDS:
            warm_seconds[name] = timer(step, 1)
        repeats[name] = 1 if sweep else max(1, math.ceil(MIN_SAMPLE_SECONDS / max(warm_seconds[name], 1e-9)))
    round_seconds = sum(warm_seconds[name] * repeats[name] for name in steps)
    rounds = settings.rounds or _rounds(settings.seconds / max(round_seconds, 1e-9))

    samples: dict[str, list[float]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, step in steps.items():
                if sweep:
                    sweep()
                samples[name].append(timer(step, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples


def _rounds(fitting: float) -> int:
    """`fitting`: how many rounds the time that is allowed holds."""
    least = min(MIN_ROUNDS, max(1, int(fitting * MOST_OVERTIME)))
    return min(MAX_ROUNDS, max(least, int(fitting)))


def default_timer(device: str) -> Timer:
    return cuda_timer if device == "cuda" else cpu_timer


def cpu_timer(step: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        step()
    return (time.perf_counter_ns() - start) * 1e-9 / repeats


def cuda_timer(step: Callable[[], object], repeats: int) -> float:
    """By events on the device: from an idle device to the end of the last kernel, launch gaps included.

    Small steps then measure Python: `benchmarks.harness.replay` is what they are timed by.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def cache_sweeper(device: str) -> Callable[[], object]:
    """Writes a buffer larger than any last-level cache."""
    buffer = torch.empty(COLD_CACHE_BYTES, dtype=torch.uint8, device=device)
    return buffer.zero_


def quartiles(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, which a single disturbed sample does not move."""
    if len(samples) == 1:
        return {"q1": samples[0], "median": samples[0], "q3": samples[0]}
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3}


def paired_ratio(baseline: Sequence[float], samples: Sequence[float]) -> dict[str, float]:
    """How many times faster than the baseline: quartiles of the ratios of the rounds, each within its own round."""
    return quartiles([base / sample for base, sample in zip(baseline, samples, strict=True)])
