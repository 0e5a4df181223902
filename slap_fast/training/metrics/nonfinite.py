"""Non-finite guard: counts skipped steps, names the suspect clips, and ends a run that diverges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from slap_fast.data.loading.batch import Batch
from slap_fast.errors import SlapFastError

MAX_SKIPPED_IN_A_ROW = 20


class DivergedError(SlapFastError, RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


class NonFiniteGuard:
    """Counts skipped steps; ends a run after `MAX_SKIPPED_IN_A_ROW` skipped steps in a row."""

    def __init__(self, skipped_steps: int = 0) -> None:
        self.skipped_steps = skipped_steps
        self._in_a_row = 0

    def record_applied(self) -> None:
        self._in_a_row = 0

    def record_skipped(self, step: int, nonfinite: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
        """Count a skipped step and return its log record. A collective call.

        Args:
            nonfinite: names of the losses and gradients that were not finite.
            keys: keys of this rank's suspect clips.

        Raises:
            DivergedError: on every rank.
        """
        self.skipped_steps += 1
        self._in_a_row += 1
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, list(keys))
        clips = [key for part in gathered for key in part]
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"{self._in_a_row} steps in a row up to step {step} were not finite (last: {', '.join(nonfinite)}; "
                f"clips {', '.join(clips[:8])}). Lower optimizer.learning_rate, lengthen schedule.warmup_steps, or "
                "check these clips; the last checkpoint is from before"
            )
        return {"step": step, "skipped": True, "nonfinite": list(nonfinite), "clips": clips}


def suspect_clips(batch: Batch) -> list[int]:
    """Ids of the clips with non-finite samples; of all clips of the batch if no sample is non-finite."""
    bad = torch.zeros(len(batch), dtype=torch.bool, device=batch.waveform.device)
    bad.index_put_((batch.samples.segment_ids(),), ~batch.waveform.isfinite(), accumulate=True)
    return (batch.clip_ids[bad] if bool(bad.any()) else batch.clip_ids).tolist()
