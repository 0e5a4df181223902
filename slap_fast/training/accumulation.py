"""Gradient accumulation with the loss of the whole batch: two passes per micro-batch (GradCache, arXiv 2101.06983).

The contrastive loss compares every clip with every other, and Sinkhorn-Knopp balances the prototypes over all masked
tokens, so the loss of the batch is not a sum over micro-batches. The first pass, without gradients, collects the
embeddings and the teacher's features of all micro-batches. From these come the contrastive loss over all ranks with the
gradient of each embedding, and the Sinkhorn potential. The second pass runs each micro-batch again and backpropagates
its part of the gradient. Only embeddings and the teacher's features at masked tokens are kept between the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.data.loading.batch import Batch
from slap_fast.ops import collectives
from slap_fast.ops.contrastive import ContrastiveOutput
from slap_fast.ops.prototype_cross_entropy import sinkhorn_potential
from slap_fast.training.losses import usage_entropy
from slap_fast.training.model import GlobalBatchContext


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
    micro_batches = batch.split(micro_batch_size)
    random_states, embeddings = [], []
    for micro_batch in micro_batches:
        random_states.append(_RandomState(batch.waveform.device))
        with torch.no_grad():
            outputs = engine(micro_batch, call="embeddings")
        # Large, and the same in every micro-batch: keep one.
        prototypes = outputs.pop("teacher_prototypes")
        embeddings.append(outputs)
    contrast, contexts = _global_losses(
        engine, batch, micro_batches, embeddings, prototypes, teacher_temperature, group
    )
    sums = {name: torch.zeros_like(contrast.loss) for name in ("self_distillation", "caption", "teacher_agreement")}
    for index, (micro_batch, context) in enumerate(zip(micro_batches, contexts, strict=True)):
        engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
        # Dropout, if a module has any, must drop the same activations as in the first pass.
        random_states[index].restore()
        outputs = engine(micro_batch, teacher_temperature, context, call="micro_batch_losses")
        engine.backward(outputs["loss"])
        for name, total in sums.items():
            total += outputs[name]
    details = {}
    if detailed:
        teacher = torch.cat([outputs["teacher_bottleneck"] for outputs in embeddings])
        details["prototype_entropy"] = usage_entropy(
            teacher, prototypes, teacher_temperature=teacher_temperature, group=group
        )
    return {
        "loss": engine.module.weighted_sum(contrast.loss, sums["self_distillation"], sums["caption"]),
        "contrastive": contrast.loss,
        **sums,
        "accuracy": contrast.accuracy,
        "positive_similarity": contrast.positive_similarity,
        "negative_similarity": contrast.negative_similarity,
        "logit_scale": embeddings[0]["logit_scale"].squeeze(),
        **details,
    }


def _global_losses(
    engine: Any,
    batch: Batch,
    micro_batches: Sequence[Batch],
    embeddings: Sequence[dict[str, Tensor]],
    prototypes: Tensor,
    teacher_temperature: float,
    group: dist.ProcessGroup | None,
) -> tuple[ContrastiveOutput, list[GlobalBatchContext]]:
    """The contrastive loss of the whole batch, detached, and the context of each micro-batch."""
    audio, text = (torch.cat([outputs[name] for outputs in embeddings]).requires_grad_() for name in ("audio", "text"))
    logit_scale = embeddings[0]["logit_scale"].clone().requires_grad_()
    contrast = engine.module.contrastive(audio, text, logit_scale, batch.clip_ids, group)
    audio_gradient, text_gradient, logit_scale_gradient = torch.autograd.grad(contrast.loss, (audio, text, logit_scale))

    potential = sinkhorn_potential(
        torch.cat([outputs["teacher_bottleneck"] for outputs in embeddings]),
        prototypes,
        teacher_temperature=teacher_temperature,
        iterations=engine.module.objectives.sinkhorn_iterations,
        group=group,
    )
    tokens = [_caption_tokens(micro_batch) for micro_batch in micro_batches]
    all_tokens = collectives.detached_all_reduce_sum(batch.input_ids.new_full((), sum(tokens)), group).clamp_min(1)
    token_unit = collectives.world_size(group) / all_tokens.to(contrast.loss.dtype)

    clips = [len(micro_batch) for micro_batch in micro_batches]
    audio_gradients, text_gradients = audio_gradient.split(clips), text_gradient.split(clips)
    contexts = [
        GlobalBatchContext(
            audio_gradient=audio_gradients[index],
            text_gradient=text_gradients[index],
            # Every micro-batch uses the logit scale, but its gradient must be added once.
            logit_scale_gradient=logit_scale_gradient if index == 0 else torch.zeros_like(logit_scale_gradient),
            teacher_bottleneck=embeddings[index]["teacher_bottleneck"],
            teacher_prototypes=prototypes,
            potential=potential,
            clip_share=clips[index] / len(batch),
            token_share=token_unit * tokens[index],
        )
        for index in range(len(micro_batches))
    ]
    return ContrastiveOutput(*(value.detach() for value in contrast)), contexts


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
