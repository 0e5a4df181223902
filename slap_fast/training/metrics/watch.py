"""Keeps an eye on a run: how fast it goes, and whether its losses stay finite."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from slap_fast.data.loading.batch import Batch
from slap_fast.errors import SlapFastError

MAX_SKIPPED_IN_A_ROW = 20


class Diverged(SlapFastError, RuntimeError):
    """Too many steps in a row had a loss or a gradient that was not finite."""


class FiniteWatch:
    """Counts steps that were skipped, and stops a run that skips `MAX_SKIPPED_IN_A_ROW` together."""

    def __init__(self, skipped_steps: int = 0) -> None:
        self.skipped_steps = skipped_steps
        self._in_a_row = 0

    def clean(self) -> None:
        """A step went well."""
        self._in_a_row = 0

    def skipped(self, step: int, nonfinite: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
        """A step was skipped; its record for the log. A collective call.

        Args:
            nonfinite: what was not finite.
            keys: names of the clips of this rank to suspect.

        Raises:
            Diverged: on every rank.
        """
        self.skipped_steps += 1
        self._in_a_row += 1
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, list(keys))
        clips = [key for part in gathered for key in part]
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{self._in_a_row} steps in a row up to step {step} were not finite (last: {', '.join(nonfinite)}; "
                f"clips {', '.join(clips[:8])}). Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or "
                "look at these clips; the last checkpoint is from before"
            )
        return {"step": step, "skipped": True, "nonfinite": list(nonfinite), "clips": clips}


def suspects(batch: Batch) -> list[int]:
    """Clip ids with samples that are not finite; all clips of the batch if there are none."""
    bad = torch.zeros(len(batch), dtype=torch.bool, device=batch.waveform.device)
    bad.index_put_((batch.samples.segment_ids(),), ~batch.waveform.isfinite(), accumulate=True)
    return (batch.clip_ids[bad] if bool(bad.any()) else batch.clip_ids).tolist()


class Speed:
    """Clips, audio seconds and useful arithmetic a second since the last reading.

    Args:
        peak_flops: FLOP/s of the devices of all ranks; None: unknown.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self._peak_flops = peak_flops
        self._restart()

    def add(self, clips: int, audio_seconds: float, flops: float = 0.0) -> None:
        """A step of all ranks."""
        self._clips += clips
        self._audio_seconds += audio_seconds
        self._flops += flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here is no part of the speed."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def read(self) -> dict[str, float | None]:
        elapsed = time.perf_counter() - self._since
        speed = {
            "clips_per_second": self._clips / elapsed,
            "audio_seconds_per_second": self._audio_seconds / elapsed,
            "teraflops_per_second": self._flops / elapsed / 1e12,
            "mfu": None if self._peak_flops is None else self._flops / elapsed / self._peak_flops,
        }
        self._restart()
        return speed

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._clips = 0
        self._audio_seconds = 0.0
        self._flops = 0.0
