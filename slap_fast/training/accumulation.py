"""Gradient accumulation with the loss of the whole batch: two passes per micro-batch (GradCache, arXiv 2101.06983).

The contrastive loss compares every clip with every other, and Sinkhorn-Knopp balances the prototypes over all masked
tokens, so the loss of the batch is not a sum over micro-batches. The first pass, without gradients, collects the
embeddings and the teacher's features of all micro-batches. From these come the contrastive loss over all ranks with the
gradient of each embedding, and the Sinkhorn potential. The second pass runs each micro-batch again and backpropagates
its part of the gradient. Only embeddings and the teacher's features at masked tokens are kept between the passes. The
caption loss alone is a sum over micro-batches, and needs no first pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.config.model import OBJECTIVES
from slap_fast.data.loading.batch import Batch
from slap_fast.ops import collectives
from slap_fast.ops.prototype_cross_entropy import sinkhorn_potential
from slap_fast.training.losses import contrastive_metrics, usage_entropy
from slap_fast.training.model import ContrastiveTensors, GlobalBatchContext, PretrainingModel, TeacherTargets


def accumulate_gradients(
    engine: Any,
    batch: Batch,
    teacher_temperature: float,
    micro_batch_size: int,
    group: dist.ProcessGroup | None = None,
    detailed: bool = False,
) -> dict[str, Tensor]:
    """Forward and backward of this rank's batch, without `engine.step`. A collective call.

    Args:
        engine: of a `PretrainingModel`.
        batch: with the same number of clips on every rank.
        micro_batch_size: clips whose activations are held at once.
        group: the ranks that share the global batch; None: this process alone.
        detailed: as for `PretrainingModel.losses`.

    Returns:
        As `PretrainingModel.losses` for `batch`, without gradients.
    """
    model, micro_batches = engine.module, batch.split(micro_batch_size)
    random_states, embeddings = [], []
    for micro_batch in micro_batches if model.needs_embeddings else ():
        random_states.append(_RandomState(batch.waveform.device))
        with torch.no_grad():
            outputs = engine(micro_batch, call="embeddings")
        # Large, and the same in every micro-batch: keep one.
        prototypes = outputs.pop("teacher_prototypes", None)
        embeddings.append(outputs)
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    contrastive: Sequence[ContrastiveTensors | None] = [None] * len(micro_batches)
    teacher: Sequence[TeacherTargets | None] = [None] * len(micro_batches)
    if "contrastive" in model.student.objectives:
        losses["contrastive"], metrics, contrastive = _contrastive_gradients(model, batch, embeddings, group)
    if "self_distillation" in model.student.objectives:
        bottleneck = [outputs["teacher_bottleneck"] for outputs in embeddings]
        potential = sinkhorn_potential(
            torch.cat(bottleneck),
            prototypes,
            teacher_temperature=teacher_temperature,
            iterations=model.objectives.sinkhorn_iterations,
            group=group,
        )
        teacher = [TeacherTargets(part, prototypes, potential) for part in bottleneck]
    contexts = zip(contrastive, teacher, _token_shares(model, batch, micro_batches, group), strict=True)
    for index, (micro_batch, parts) in enumerate(zip(micro_batches, contexts, strict=True)):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        # Dropout, if a module has any, must drop the same activations as in the first pass.
        if random_states:
            random_states[index].restore()
        context = GlobalBatchContext(*parts, clip_share=len(micro_batch) / len(batch))
        outputs = engine(micro_batch, teacher_temperature, context, call="micro_batch_losses")
        engine.backward(outputs.pop("loss"))
        for name, value in outputs.items():
            sums = losses if name in OBJECTIVES else metrics
            sums[name] = sums[name] + value if name in sums else value
    if detailed and "self_distillation" in model.student.objectives:
        metrics["prototype_entropy"] = usage_entropy(
            torch.cat(bottleneck), prototypes, teacher_temperature=teacher_temperature, group=group
        )
    return {"loss": model.weighted_sum(losses), **losses, **metrics}


def _contrastive_gradients(
    model: PretrainingModel, batch: Batch, embeddings: Sequence[dict[str, Tensor]], group: dist.ProcessGroup | None
) -> tuple[Tensor, dict[str, Tensor], list[ContrastiveTensors | None]]:
    """Loss and metrics of the whole batch, detached, and the gradients that each micro-batch backpropagates."""
    audio, text = (torch.cat([outputs[name] for outputs in embeddings]).requires_grad_() for name in ("audio", "text"))
    logit_scale = embeddings[0]["logit_scale"].clone().requires_grad_()
    contrast = model.contrastive(audio, text, logit_scale, batch.clip_ids, group)
    audio_gradient, text_gradient, logit_scale_gradient = torch.autograd.grad(contrast.loss, (audio, text, logit_scale))
    clips = [len(outputs["audio"]) for outputs in embeddings]
    # Every micro-batch uses the logit scale, but its gradient must be added once.
    scales = [logit_scale_gradient] + [torch.zeros_like(logit_scale_gradient)] * (len(clips) - 1)
    gradients = zip(audio_gradient.split(clips), text_gradient.split(clips), scales, strict=True)
    metrics = contrastive_metrics(contrast, logit_scale)
    return contrast.loss.detach(), metrics, [ContrastiveTensors(*parts) for parts in gradients]


def _token_shares(
    model: PretrainingModel, batch: Batch, micro_batches: Sequence[Batch], group: dist.ProcessGroup | None
) -> list[Tensor | None]:
    """`GlobalBatchContext.token_share` of each micro-batch."""
    if "caption" not in model.student.objectives:
        return [None] * len(micro_batches)
    tokens = [_caption_tokens(micro_batch) for micro_batch in micro_batches]
    all_tokens = collectives.detached_all_reduce_sum(batch.input_ids.new_full((), sum(tokens)), group).clamp_min(1)
    dtype = torch.promote_types(model.student.audio_encoder.mask_token.dtype, torch.float32)
    unit = collectives.world_size(group) / all_tokens.to(dtype)
    return [unit * count for count in tokens]


def _caption_tokens(batch: Batch) -> int:
    """Tokens to predict: all but the first of each caption."""
    return batch.text.total - len(batch)


class _RandomState:
    """A snapshot of the random generators that a model on `device` uses."""

    def __init__(self, device: torch.device) -> None:
        self._host = torch.get_rng_state()
        self._gpu = device if device.type == "cuda" else None
        self._on_gpu = None if self._gpu is None else torch.cuda.get_rng_state(self._gpu)

    def restore(self) -> None:
        torch.set_rng_state(self._host)
        if self._gpu is not None and self._on_gpu is not None:
            torch.cuda.set_rng_state(self._on_gpu, self._gpu)
