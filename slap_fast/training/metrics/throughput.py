"""Throughput meter: clips, audio seconds and FLOP per second, and model FLOP utilization (MFU)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class ThroughputMeter:
    """Rates since the last `read`.

    Args:
        peak_flops: FLOP/s of the devices of all ranks; None: unknown.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self._peak_flops = peak_flops
        self._reset()

    def add(self, clips: int, audio_seconds: float, flops: float = 0.0) -> None:
        """Count one step of all ranks."""
        self._clips += clips
        self._audio_seconds += audio_seconds
        self._flops += flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, such as an evaluation."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> dict[str, float | None]:
        elapsed = time.perf_counter() - self._since
        rates = {
            "clips_per_second": self._clips / elapsed,
            "audio_seconds_per_second": self._audio_seconds / elapsed,
            "teraflops_per_second": self._flops / elapsed / 1e12,
            "mfu": None if self._peak_flops is None else self._flops / elapsed / self._peak_flops,
        }
        self._reset()
        return rates

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._clips = 0
        self._audio_seconds = 0.0
        self._flops = 0.0
