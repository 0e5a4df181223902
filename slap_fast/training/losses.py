"""Loss and metric functions around the ops: pure functions of tensors, over the clips of all ranks of a group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops import collectives
from slap_fast.ops.contrastive import ContrastiveOutput
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_usage


def unit_rows(embedding: Tensor) -> Tensor:
    """L2-normalize the rows of `[N, D]` in float32 (float64 for float64); a row of zeros has a finite gradient."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)


def contrastive_metrics(contrast: ContrastiveOutput, logit_scale: Tensor) -> dict[str, Tensor]:
    """0-dim `accuracy`, `positive_similarity`, `negative_similarity` and `logit_scale`, without gradients."""
    return {
        "accuracy": contrast.accuracy.detach(),
        "positive_similarity": contrast.positive_similarity.detach(),
        "negative_similarity": contrast.negative_similarity.detach(),
        "logit_scale": logit_scale.detach().squeeze(),
    }


def mean_over_tokens(
    token_sum: Tensor, targets: Tensor, *, ignore_index: int = -100, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Turn this rank's sum of a loss over its tokens into its share of the mean over the tokens of all ranks.

    Args:
        token_sum: scalar, the sum over this rank's tokens.
        targets: `[T]` int64, the targets of the loss; those equal to `ignore_index` do not count.
        group: None: this process alone.

    Returns:
        Scalar, scaled so that the mean over ranks, of values and of gradients, is the global mean; 0 if no rank has a
        token.
    """
    tokens = collectives.detached_all_reduce_sum((targets != ignore_index).sum(), group)
    return token_sum * (collectives.world_size(group) / tokens.clamp_min(1).to(token_sum.dtype))


@torch.no_grad()
def teacher_agreement(student_features: Tensor, teacher_features: Tensor, masked: PackedLayout) -> Tensor:
    """Cosine similarity of student and teacher at the masked positions: mean per clip, then over these clips.

    Args:
        student_features: `[M, D]` floating point, L2-normalized.
        teacher_features: `[M, D]`, L2-normalized.
        masked: assigns the M positions to clips. A clip without any counts as 0.

    Returns:
        Scalar in [-1, 1], float32 (float64 for float64), without a gradient.
    """
    dtype = torch.promote_types(student_features.dtype, torch.float32)
    # Not vecdot, which autocast would compute in low precision.
    cosine = (student_features.to(dtype) * teacher_features.to(dtype)).sum(dim=-1)
    weight = (masked.cu_seqlens.diff() * len(masked)).to(dtype).reciprocal()
    return torch.dot(cosine, weight[masked.segment_ids()])


@torch.no_grad()
def usage_entropy(
    teacher_features: Tensor,
    teacher_prototypes: Tensor,
    *,
    teacher_temperature: float,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Entropy, in nats, of the teacher's use of its prototypes over the masked positions of all ranks.

    `ln K` if all K prototypes are used equally, 0 if one prototype takes every position. It is measured before
    Sinkhorn-Knopp, which balances the targets of any features, so it falls when the teacher collapses.

    Args:
        teacher_features: `[M, D]` floating point, L2-normalized.
        teacher_prototypes: `[K, D]`.
        teacher_temperature: positive.
        group: None: this process alone.

    Returns:
        Scalar, the same on every rank, without a gradient.
    """
    usage = prototype_usage(teacher_features, teacher_prototypes, teacher_temperature=teacher_temperature, group=group)
    return torch.special.entr(usage).sum()
