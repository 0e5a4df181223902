"""Metrics of a training step, reduced over the ranks by one all-reduce that overlaps with the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

LOSSES = ("loss", "contrastive", "self_distillation", "caption")
METRICS = ("accuracy", "positive_similarity", "negative_similarity", "logit_scale", "teacher_agreement")
DETAILS = ("prototype_entropy",)
"""Metrics of a detailed step only."""


@dataclass(frozen=True)
class StepMetrics:
    """The result of a training step; the same on every rank.

    Attributes:
        nonfinite: empty if the step was applied; else the losses that were not finite on some rank, or if all were
            finite the towers whose gradient was not, as `gradient of audio_encoder`, or just `gradient`.
        stop: some rank asks to stop.
        values: those of `LOSSES` and `METRICS` that the active objectives have: losses averaged over the ranks, metrics
            over the clips of all ranks.
        audio_seconds: of the global batch.
        grad_norm: global, before clipping.
        grad_norms: of each tower, before clipping; detailed steps only.
        counts: the counts given to `take_step`, summed over the ranks.
        maxima: the values given to `take_step` as `maxima`; the largest of any rank.
    """

    nonfinite: tuple[str, ...]
    stop: bool
    values: dict[str, float]
    audio_seconds: float
    grad_norm: float
    grad_norms: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)


class HostCopy:
    """A non-blocking copy of `numbers` `[n]` to the host; only `result` waits for the device."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def result(self) -> list[float]:
        """The numbers, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


class ReducedMetrics(NamedTuple):
    """See `StepMetrics` for `values`, `nonfinite` (losses only) and `maxima`; `sums` is `counts` over all ranks."""

    values: dict[str, float]
    nonfinite: tuple[str, ...]
    sums: dict[str, float]
    maxima: dict[str, float]


class MetricReducer:
    """Reduces one step's metrics over the ranks and copies them to the host while the backward pass runs.

    A single all-reduce (sum) carries everything: for a maximum, each rank has an entry of its own in the vector.

    Args:
        outputs: of `PretrainingModel.losses`.
        counts: of this rank, `clips` among them; the same names on every rank.
        maxima: of this rank; the same names on every rank.
    """

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        counts: Mapping[str, float],
        maxima: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        device, self._world_size = outputs["loss"].device, dist.get_world_size()
        self._counts, self._maxima = tuple(counts), tuple(maxima)
        self._losses = tuple(name for name in LOSSES if name in outputs)
        self._metrics = tuple(name for name in (*METRICS, *DETAILS) if name in outputs)
        per_rank = torch.zeros(len(maxima), self._world_size)
        per_rank[:, dist.get_rank()] = torch.tensor(list(maxima.values()))
        host = torch.cat([torch.tensor(list(counts.values())), per_rank.flatten()])
        if device.type == "cuda":
            host = host.pin_memory()
        losses, metrics = (
            # `cat` takes an empty list too: captions alone have no metric.
            torch.cat([outputs["loss"].new_empty(0), *(outputs[name].detach().reshape(1) for name in names)]).float()
            for names in (self._losses, self._metrics)
        )
        numbers = torch.cat(
            [losses, (~losses.isfinite()).float(), metrics * counts["clips"], host.to(device, non_blocking=True)]
        )
        dist.all_reduce(numbers)
        self._copy = HostCopy(numbers)

    def result(self) -> ReducedMetrics:
        """Wait for the copy and unpack it."""
        numbers = iter(self._copy.result())
        losses = {name: value / self._world_size for name, value in zip(self._losses, numbers, strict=False)}
        nonfinite = tuple(name for name, count in zip(self._losses, numbers, strict=False) if count > 0)
        metrics = dict(zip(self._metrics, numbers, strict=False))
        sums = dict(zip(self._counts, numbers, strict=False))
        maxima = {name: max(islice(numbers, self._world_size)) for name in self._maxima}
        values = losses | {name: value / sums["clips"] for name, value in metrics.items()}
        return ReducedMetrics(values, nonfinite, sums, maxima)
