"""What a rank knows of its own part of a step without waiting for its device."""

from __future__ import annotations

import resource
from collections.abc import Mapping

import torch

from slap_fast.config.model import ModelConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.models.flops import step_flops


class StepCounts:
    """Counts a batch for the log.

    Args:
        config: of the model.
        shared_pass: all objectives see one pass of the audio encoder.
    """

    def __init__(self, config: ModelConfig, *, shared_pass: bool) -> None:
        self._config = config
        self._shared_pass = shared_pass

    def of(self, batch: Batch, *, detailed: bool) -> dict[str, float]:
        """`flops` that are of use; if `detailed`, `tokens` of clips and captions, and `buffer_tokens` run for them."""
        lengths = batch.tokens.lengths, batch.text.lengths, batch.masked.total
        counts = {"flops": step_flops(self._config, *lengths, shared_pass=self._shared_pass)}
        if detailed:
            clips = sum(self._config.num_tokens(samples) for samples in batch.samples.lengths)
            counts["tokens"] = float(clips + batch.text.total)
            counts["buffer_tokens"] = float(batch.tokens.total + batch.input_ids.numel())
        return counts


def batch_metrics(counts: Mapping[str, float], levels: Mapping[str, float]) -> dict[str, float]:
    """What the log says of a detailed step's counts, summed over the ranks, and levels, the largest of all ranks.

    `padding_waste` is the share of tokens that were computed and belong to no clip and no caption.
    """
    return {
        "padding_waste": 1.0 - counts["tokens"] / counts["buffer_tokens"],
        "dropped_clips": counts["dropped_clips"],
        "memory_gib": levels["memory"] / 2**30,
    }


def memory_in_use(device: torch.device) -> float:
    """Bytes: on a GPU the most that tensors held since the last call, on a CPU the process's resident set."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)
    with open("/proc/self/statm", encoding="ascii") as file:
        return float(file.read().split()[1]) * resource.getpagesize()
