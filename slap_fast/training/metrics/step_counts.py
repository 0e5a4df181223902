"""Step counts: FLOPs, tokens and memory of a rank's part of a step, without a device sync."""

from __future__ import annotations

import resource
from collections.abc import Collection, Mapping

import torch

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.models.flops import step_flops


class StepCounts:
    """Counts the FLOPs and tokens of a batch for the log.

    Args:
        frozen: parts that are not trained.
    """

    def __init__(self, config: ModelConfig, objectives: ObjectivesConfig, frozen: Collection[str] = ()) -> None:
        self._config = config
        self._frozen = frozen
        self._objectives = objectives

    def count(self, batch: Batch, *, detailed: bool) -> dict[str, float]:
        """`flops` without padding; if `detailed`, `tokens` of clips and captions, and `buffer_tokens` with padding."""
        lengths = batch.tokens.lengths, batch.text.lengths, batch.masked.total
        counts = {"flops": step_flops(self._config, *lengths, self._objectives, frozen=self._frozen)}
        if detailed:
            clips = sum(self._config.num_tokens(samples) for samples in batch.samples.lengths)
            counts["tokens"] = float(clips + batch.text.total)
            counts["buffer_tokens"] = float(batch.tokens.total + batch.input_ids.numel())
        return counts


def batch_metrics(counts: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, float]:
    """Log values of a detailed step, from counts summed over the ranks and maxima over the ranks.

    `padding_waste` is the share of computed tokens that are padding.
    """
    return {
        "padding_waste": 1.0 - counts["tokens"] / counts["buffer_tokens"],
        "dropped_clips": counts["dropped_clips"],
        "memory_gib": maxima["memory"] / 2**30,
    }


def memory_in_use(device: torch.device) -> float:
    """Bytes: on a GPU the peak of allocated tensors since the last call, on a CPU the resident set of the process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)
    with open("/proc/self/statm", encoding="ascii") as file:
        return float(file.read().split()[1]) * resource.getpagesize()
