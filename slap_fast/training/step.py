"""One training step: forward, backward, update, teacher; and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.data.batch import Batch
from slap_fast.training.accumulation import accumulate_gradients
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import set_learning_rate
from slap_fast.training.schedule import StepSettings

LOSSES = ("loss", "contrastive", "self_distillation", "caption")
METRICS = ("accuracy", "positive_similarity", "negative_similarity", "logit_scale")


@dataclass(frozen=True)
class Report:
    """The same on every rank.

    Attributes:
        nonfinite: empty if the step was applied; else the losses that were not finite on some rank, or `("gradient",)`.
        stop: some rank asks to stop.
        values: losses, averaged over the ranks, and metrics, over the clips of all ranks.
        audio_seconds: in the global batch.
        grad_norm: global, before clipping.
    """

    nonfinite: tuple[str, ...]
    stop: bool
    values: dict[str, float]
    audio_seconds: float
    grad_norm: float


def take_step(
    engine: Any,
    average: TeacherAverage,
    batch: Batch,
    settings: StepSettings,
    *,
    stop: bool,
    audio_seconds: float,
    micro_batch_size: int | None = None,
) -> Report:
    """Train on this rank's share of a batch.

    A loss or a gradient that is not finite on any rank leaves parameters, optimizer and teacher untouched on all.

    Args:
        stop: this rank asks to stop after the step.
        audio_seconds: in this rank's share.
        micro_batch_size: clips whose activations are held at once; None: all. It does not change the result.
    """
    set_learning_rate(engine, settings.learning_rate)
    discard_stale_gradients(engine)
    temperature, group = settings.teacher_temperature, dist.group.WORLD
    if micro_batch_size is None or micro_batch_size >= len(batch):
        outputs = engine(batch, temperature, group)
        reading = _Reading(outputs, stop=stop, clips=len(batch), audio_seconds=audio_seconds)
        engine.backward(outputs["loss"])
    else:
        outputs = accumulate_gradients(engine, batch, temperature, micro_batch_size, group)
        reading = _Reading(outputs, stop=stop, clips=len(batch), audio_seconds=audio_seconds)
    applied, grad_norm = apply_gradients(engine)
    if applied:
        average.update(settings.ema_momentum)
    values = reading.result()
    values.pop("clips")
    nonfinite = tuple(name for name in LOSSES if values.pop(f"nonfinite_{name}") > 0)
    return Report(
        nonfinite=() if applied else nonfinite or ("gradient",),
        stop=values.pop("stop") > 0,
        audio_seconds=values.pop("audio_seconds") * dist.get_world_size(),
        grad_norm=grad_norm,
        values=values,
    )


def discard_stale_gradients(engine: Any) -> None:
    """ZeRO-3 keeps the last step's gradient of a parameter that gets none in this step, and would apply it again."""
    stale = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if isinstance(stale, Tensor):
        stale.zero_()


def apply_gradients(engine: Any) -> tuple[bool, float]:
    """`engine.step()`, but never with a gradient that is not finite; `(was it applied, gradient norm before clipping)`.

    DeepSpeed checks by itself wherever it wraps the optimizer. It does not in float32 at stage 0.
    """
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(grad_norm):
            engine.zero_grad()
            return False, float("inf")
        engine.step()
        return True, float(grad_norm)
    engine.step()
    return engine.was_step_applied(), float(engine.get_global_grad_norm() or 0.0)


class _Reading:
    """The step's numbers, averaged over the ranks and on their way to the host while the backward pass runs."""

    def __init__(self, outputs: dict[str, Tensor], *, stop: bool, clips: int, audio_seconds: float) -> None:
        device = outputs["loss"].device
        host = torch.tensor([float(stop), audio_seconds, float(clips)])
        if device.type == "cuda":
            host = host.pin_memory()
        losses = torch.stack([outputs[name].detach().float().reshape(()) for name in LOSSES])
        metrics = torch.stack([outputs[name].detach().float().reshape(()) for name in METRICS])
        numbers = torch.cat([losses, (~losses.isfinite()).float(), host.to(device, non_blocking=True), metrics * clips])
        dist.all_reduce(numbers)
        numbers /= dist.get_world_size()
        numbers[-len(METRICS) :] /= numbers[-len(METRICS) - 1]  # the mean number of clips
        self._names = [*LOSSES, *(f"nonfinite_{name}" for name in LOSSES), "stop", "audio_seconds", "clips", *METRICS]
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None
        if self._arrived is not None:
            self._arrived.record()

    def result(self) -> dict[str, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return dict(zip(self._names, self._numbers.tolist(), strict=True))
