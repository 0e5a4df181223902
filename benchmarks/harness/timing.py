"""Interleaved timing: A B C A B C, so that a machine that slows down affects all peers equally."""

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
# MIN_ROUNDS may take up to this multiple of `Settings.seconds`; beyond it, fewer rounds are run.
MAX_OVERTIME = 10
WARM_AFTER_SECONDS = 5.0
COLD_CACHE_BYTES = 512 * 2**20

Timer = Callable[[Callable[[], object], int], float]


def time_interleaved(
    steps: Mapping[str, Callable[[], object]],
    settings: Settings,
    timer: Timer | None = None,
    checked_seconds: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of each step, one sample per round; sample i of every step is from round i.

    The number of rounds is what fits in `settings.seconds`, but from MIN_ROUNDS to MAX_ROUNDS. If MIN_ROUNDS would take
    more than MAX_OVERTIME times `settings.seconds`, it is what fits in that time, at least one.

    A sample repeats a short step for about 5 ms, because of the resolution of the clock, but not with a cold cache.

    Args:
        steps: by name.
        settings: measurement settings.
        timer: runs a step n times and returns the seconds per call; None: by `settings.device`.
        checked_seconds: duration of each step in its check. A step that took WARM_AFTER_SECONDS or more gets no
            other warm-up: it is warm after its first percent.
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
    """Number of rounds, if `fitting` rounds take `settings.seconds`."""
    at_least = min(MIN_ROUNDS, max(1, int(fitting * MAX_OVERTIME)))
    return min(MAX_ROUNDS, max(at_least, int(fitting)))


def default_timer(device: str) -> Timer:
    return cuda_timer if device == "cuda" else cpu_timer


def cpu_timer(step: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        step()
    return (time.perf_counter_ns() - start) * 1e-9 / repeats


def cuda_timer(step: Callable[[], object], repeats: int) -> float:
    """Time by CUDA events, from an idle device to the end of the last kernel.

    Includes gaps between launches, so a small step measures Python: `benchmarks.harness.replay` avoids that.
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
    """A function that writes a buffer larger than any last-level cache."""
    buffer = torch.empty(COLD_CACHE_BYTES, dtype=torch.uint8, device=device)
    return buffer.zero_


def quartiles(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles: robust against single outliers."""
    if len(samples) == 1:
        return {"q1": samples[0], "median": samples[0], "q3": samples[0]}
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3}


def paired_ratio(baseline: Sequence[float], samples: Sequence[float]) -> dict[str, float]:
    """Speedup over the baseline: quartiles of the ratio within each round."""
    return quartiles([base / sample for base, sample in zip(baseline, samples, strict=True)])
