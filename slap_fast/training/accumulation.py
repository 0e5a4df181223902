"""Cached accumulation: a batch in micro-batches, with the gradients of the batch at once (GradCache, arXiv 2101.06983).

Every clip is a negative of every other, and every masked token has its say in the balance of the prototypes. So the
first pass over the micro-batches, without gradients, collects what the losses compare: embeddings and the teacher's
features. The losses of the whole batch, over all ranks, then give the gradient of each embedding and the balance. The
second pass computes each micro-batch anew and carries its part of the gradient back to the parameters. Between the
passes nothing is kept but embeddings and the teacher's features at masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.data.loading.batch import Batch
from slap_fast.objectives.contrastive import contrastive
from slap_fast.objectives.self_distillation import usage_entropy
from slap_fast.ops import collectives
from slap_fast.ops.contrastive import ContrastiveOutput
from slap_fast.ops.prototype_cross_entropy import sinkhorn_potential
from slap_fast.training.model import Rest


def accumulate_gradients(
    engine: Any,
    batch: Batch,
    teacher_temperature: float,
    micro_batch_size: int,
    group: dist.ProcessGroup | None = None,
    detailed: bool = False,
) -> dict[str, Tensor]:
    """Forward and backward of one rank's batch; `engine.step` is left to do. A collective call.

    Args:
        engine: of a `PretrainingModel`.
        batch: of as many clips on every rank.
        micro_batch_size: clips whose activations are held at once.
        group: the ranks that share the global batch; None: this process alone.
        detailed: as for `PretrainingModel.losses`.

    Returns:
        What `PretrainingModel.losses` returns for `batch`, without gradients.
    """
    parts = batch.split(micro_batch_size)
    random_states, seen = [], []
    for part in parts:
        random_states.append(_RandomState(batch.waveform.device))
        with torch.no_grad():
            outputs = engine(part, call="embeddings")
        # The same in every micro-batch, and large: one is kept.
        prototypes = outputs.pop("teacher_prototypes")
        seen.append(outputs)
    contrast, rests = _whole_batch(engine, batch, parts, seen, prototypes, teacher_temperature, group)
    sums = {name: torch.zeros_like(contrast.loss) for name in ("self_distillation", "caption", "teacher_agreement")}
    for index, (part, rest, random_state) in enumerate(zip(parts, rests, random_states, strict=True)):
        engine.set_gradient_accumulation_boundary(index == len(parts) - 1)
        # Dropout, if a module has any, drops what it dropped in the first pass.
        random_state.restore()
        outputs = engine(part, teacher_temperature, rest, call="part_losses")
        engine.backward(outputs["loss"])
        for name, total in sums.items():
            total += outputs[name]
    details = {}
    if detailed:
        teacher = torch.cat([part["teacher_bottleneck"] for part in seen])
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
        "logit_scale": seen[0]["logit_scale"].squeeze(),
        **details,
    }


def _whole_batch(
    engine: Any,
    batch: Batch,
    parts: Sequence[Batch],
    seen: Sequence[dict[str, Tensor]],
    prototypes: Tensor,
    teacher_temperature: float,
    group: dist.ProcessGroup | None,
) -> tuple[ContrastiveOutput, list[Rest]]:
    """The contrastive loss of the whole batch, detached, and what each micro-batch has to know of it."""
    audio, text = (torch.cat([part[name] for part in seen]).requires_grad_() for name in ("audio", "text"))
    logit_scale = seen[0]["logit_scale"].clone().requires_grad_()
    contrast = contrastive(
        audio, text, logit_scale, batch.clip_ids, group=group, exchange=engine.module.contrastive_exchange
    )
    audio_gradient, text_gradient, logit_scale_gradient = torch.autograd.grad(contrast.loss, (audio, text, logit_scale))

    potential = sinkhorn_potential(
        torch.cat([part["teacher_bottleneck"] for part in seen]),
        prototypes,
        teacher_temperature=teacher_temperature,
        iterations=engine.module.objectives.sinkhorn_iterations,
        group=group,
    )
    tokens = [_caption_tokens(part) for part in parts]
    all_tokens = collectives.sum_over_ranks(batch.input_ids.new_full((), sum(tokens)), group).clamp_min(1)
    token_unit = collectives.world_size(group) / all_tokens.to(contrast.loss.dtype)

    own = zip(
        audio_gradient.split([len(part) for part in parts]),
        text_gradient.split([len(part) for part in parts]),
        # The temperature is in every micro-batch, its gradient must come once.
        [logit_scale_gradient] + [torch.zeros_like(logit_scale_gradient)] * (len(parts) - 1),
        [part["teacher_bottleneck"] for part in seen],
        [prototypes] * len(parts),
        [potential] * len(parts),
        [len(part) / len(batch) for part in parts],
        [token_unit * count for count in tokens],
        strict=True,
    )
    return ContrastiveOutput(*(value.detach() for value in contrast)), [Rest(*values) for values in own]


def _caption_tokens(batch: Batch) -> int:
    """Tokens to predict: all but each caption's first."""
    return batch.text.total - len(batch)


class _RandomState:
    """The state of the generators that a model on `device` draws from, so that it draws the same again."""

    def __init__(self, device: torch.device) -> None:
        self._host = torch.get_rng_state()
        self._gpu = device if device.type == "cuda" else None
        self._on_gpu = None if self._gpu is None else torch.cuda.get_rng_state(self._gpu)

    def restore(self) -> None:
        torch.set_rng_state(self._host)
        if self._gpu is not None and self._on_gpu is not None:
            torch.cuda.set_rng_state(self._on_gpu, self._gpu)
