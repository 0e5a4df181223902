"""One training step: forward, backward, optimizer, EMA teacher, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch.distributed as dist

from slap_fast.data.loading.batch import Batch
from slap_fast.training.accumulation import accumulate_gradients
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import set_learning_rate
from slap_fast.training.metrics.gradient_norms import GradientNorms
from slap_fast.training.metrics.step_metrics import MetricReducer, StepMetrics
from slap_fast.training.schedule import StepSettings
from slap_fast.training.zero import discard_stale_gradients, step_if_finite


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
    maxima: Mapping[str, float] = MappingProxyType({}),
) -> StepMetrics:
    """Train on this rank's share of a global batch.

    If any rank sees a non-finite loss or gradient, all ranks skip the step: parameters, optimizer and teacher stay.

    Args:
        stop: this rank asks to stop after the step.
        audio_seconds: in this rank's share.
        micro_batch_size: clips whose activations are held at once; None: all. It does not change the result.
        detailed: also measure what costs a little time; the same on every rank.
        counts: numbers of this rank to sum over the ranks, in the step's one all-reduce; the same names on every rank.
        maxima: numbers of this rank of which the largest of any rank is wanted; the same names on every rank.
    """
    set_learning_rate(engine, settings.learning_rate)
    discard_stale_gradients(engine)
    temperature, group = settings.teacher_temperature, dist.group.WORLD
    own = {"stop": float(stop), "audio_seconds": audio_seconds, "clips": float(len(batch)), **counts}
    if micro_batch_size is None or micro_batch_size >= len(batch):
        outputs = engine(batch, temperature, group, detailed)
        reducer = MetricReducer(outputs, own, maxima)
        engine.backward(outputs["loss"])
    else:
        outputs = accumulate_gradients(engine, batch, temperature, micro_batch_size, group, detailed)
        reducer = MetricReducer(outputs, own, maxima)
    norms = GradientNorms(engine)
    if detailed:
        norms.reduce()
    applied, grad_norm = step_if_finite(engine, lambda: math.hypot(*norms.values().values()))
    if applied:
        average.update(settings.ema_momentum)
    reduced = reducer.result()
    nonfinite = () if applied else reduced.nonfinite or _nonfinite_gradients(norms)
    return StepMetrics(
        nonfinite=nonfinite,
        stop=reduced.sums["stop"] > 0,
        values=reduced.values,
        audio_seconds=reduced.sums["audio_seconds"],
        grad_norm=grad_norm,
        grad_norms=norms.values() if detailed else {},
        counts={name: reduced.sums[name] for name in counts},
        maxima=reduced.maxima,
    )


def _nonfinite_gradients(norms: GradientNorms) -> tuple[str, ...]:
    towers = tuple(f"gradient of {tower}" for tower, norm in norms.values().items() if not math.isfinite(norm))
    return towers or ("gradient",)
