"""One training step: forward, backward, update, teacher; and what it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.data.loading.batch import Batch
from slap_fast.training.accumulation import accumulate_gradients
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.metrics.gradient_norms import GradientNorms
from slap_fast.training.metrics.host_copy import HostCopy
from slap_fast.training.schedule import StepSettings
from slap_fast.training.zero import set_learning_rate

LOSSES = ("loss", "contrastive", "self_distillation", "caption")
METRICS = ("accuracy", "positive_similarity", "negative_similarity", "logit_scale", "teacher_agreement")
DETAILS = ("prototype_entropy",)
"""Metrics of a detailed step only."""


@dataclass(frozen=True)
class Report:
    """The same on every rank.

    Attributes:
        nonfinite: empty if the step was applied; else the losses that were not finite on some rank, or, where all were,
            the towers whose gradient was not, as `gradient of audio_encoder`, or `gradient`.
        stop: some rank asks to stop.
        values: losses, averaged over the ranks, and metrics, over the clips of all ranks.
        audio_seconds: in the global batch.
        grad_norm: global, before clipping.
        grad_norms: the same of each tower; of a detailed step only.
        counts: what was given, summed over the ranks.
        levels: what was given, the largest of all ranks.
    """

    nonfinite: tuple[str, ...]
    stop: bool
    values: dict[str, float]
    audio_seconds: float
    grad_norm: float
    grad_norms: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)


def take_step(
    engine: Any,
    average: TeacherAverage,
    batch: Batch,
    settings: StepSettings,
    *,
    stop: bool,
    audio_seconds: float,
    micro_batch_size: int | None = None,
    detailed: bool = False,
    counts: Mapping[str, float] = MappingProxyType({}),
    levels: Mapping[str, float] = MappingProxyType({}),
) -> Report:
    """Train on this rank's share of a batch.

    A loss or a gradient that is not finite on any rank leaves parameters, optimizer and teacher untouched on all.

    Args:
        stop: this rank asks to stop after the step.
        audio_seconds: in this rank's share.
        micro_batch_size: clips whose activations are held at once; None: all. It does not change the result.
        detailed: measure what takes a little time; the same on every rank.
        counts: this rank's, to be summed over the ranks in the one exchange of a step's numbers; of the same names on
            every rank.
        levels: the same, for the largest.
    """
    set_learning_rate(engine, settings.learning_rate)
    discard_stale_gradients(engine)
    temperature, group = settings.teacher_temperature, dist.group.WORLD
    own = {"stop": float(stop), "audio_seconds": audio_seconds, "clips": float(len(batch)), **counts}
    if micro_batch_size is None or micro_batch_size >= len(batch):
        outputs = engine(batch, temperature, group, detailed)
        reading = _Reading(outputs, own, levels)
        engine.backward(outputs["loss"])
    else:
        outputs = accumulate_gradients(engine, batch, temperature, micro_batch_size, group, detailed)
        reading = _Reading(outputs, own, levels)
    norms = GradientNorms(engine)
    if detailed:
        norms.reduce()
    applied, grad_norm = apply_gradients(engine, norms)
    if applied:
        average.update(settings.ema_momentum)
    numbers = reading.result()
    return Report(
        nonfinite=() if applied else _nonfinite(numbers, norms),
        stop=numbers.sums["stop"] > 0,
        values=numbers.values,
        audio_seconds=numbers.sums["audio_seconds"],
        grad_norm=grad_norm,
        grad_norms=norms.values() if detailed else {},
        counts={name: numbers.sums[name] for name in counts},
        levels=numbers.largest,
    )


def _nonfinite(numbers: _Numbers, norms: GradientNorms) -> tuple[str, ...]:
    towers = tuple(f"gradient of {tower}" for tower, norm in norms.values().items() if not math.isfinite(norm))
    return numbers.nonfinite or towers or ("gradient",)


def discard_stale_gradients(engine: Any) -> None:
    """ZeRO-3 keeps the last step's gradient of a parameter that gets none in this step, and would apply it again."""
    stale = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if isinstance(stale, Tensor):
        stale.zero_()


def apply_gradients(engine: Any, norms: GradientNorms) -> tuple[bool, float]:
    """`engine.step()`, but never with a gradient that is not finite; `(was it applied, gradient norm before clipping)`.

    DeepSpeed checks by itself wherever it wraps the optimizer. It does not in float32 at stage 0.
    """
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        grad_norm = math.hypot(*norms.values().values())
        if not math.isfinite(grad_norm):
            engine.zero_grad()
            return False, float("inf")
        engine.step()
        return True, grad_norm
    engine.step()
    return engine.was_step_applied(), float(engine.get_global_grad_norm() or 0.0)


class _Numbers(NamedTuple):
    values: dict[str, float]
    nonfinite: tuple[str, ...]
    sums: dict[str, float]
    largest: dict[str, float]


class _Reading:
    """The step's numbers, exchanged among the ranks and on their way to the host while the backward pass runs.

    One sum over the ranks is all that they exchange: for the largest of each rank's level every rank has a place of its
    own.
    """

    def __init__(
        self, outputs: dict[str, Tensor], own: Mapping[str, float], levels: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        device, self._ranks = outputs["loss"].device, dist.get_world_size()
        self._sums, self._levels = tuple(own), tuple(levels)
        self._metrics = tuple(name for name in (*METRICS, *DETAILS) if name in outputs)
        places = torch.zeros(len(levels), self._ranks)
        places[:, dist.get_rank()] = torch.tensor(list(levels.values()))
        host = torch.cat([torch.tensor(list(own.values())), places.flatten()])
        if device.type == "cuda":
            host = host.pin_memory()
        losses, metrics = (
            torch.stack([outputs[name].detach().float().reshape(()) for name in names])
            for names in (LOSSES, self._metrics)
        )
        numbers = torch.cat(
            [losses, (~losses.isfinite()).float(), metrics * own["clips"], host.to(device, non_blocking=True)]
        )
        dist.all_reduce(numbers)
        self._copy = HostCopy(numbers)

    def result(self) -> _Numbers:
        numbers = iter(self._copy.result())
        losses = {name: value / self._ranks for name, value in zip(LOSSES, numbers, strict=False)}
        nonfinite = tuple(name for name, count in zip(LOSSES, numbers, strict=False) if count > 0)
        metrics = dict(zip(self._metrics, numbers, strict=False))
        sums = dict(zip(self._sums, numbers, strict=False))
        largest = {name: max(islice(numbers, self._ranks)) for name in self._levels}
        values = losses | {name: value / sums["clips"] for name, value in metrics.items()}
        return _Numbers(values, nonfinite, sums, largest)
