"""The student, which sees part of a clip, predicts what the teacher, which sees all, says at the hidden positions."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy, prototype_usage


def self_distillation(
    student_features: Tensor,
    teacher_features: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    masked: PackedLayout,
    *,
    student_temperature: float,
    teacher_temperature: float,
    sinkhorn_iterations: int = 3,
    potential: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy over prototypes at the masked positions: mean over a clip's, then over the clips of all ranks.

    Args:
        student_features: `[M, D]` floating point, L2-normalised, at the masked positions only.
        teacher_features: `[M, D]`, at the same positions; no gradient reaches them.
        student_prototypes: `[K, D]`.
        teacher_prototypes: `[K, D]`; no gradient reaches them.
        masked: which of the M positions belong to which clip.
        student_temperature: positive.
        teacher_temperature: positive.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp over the masked tokens of all ranks.
        potential: `[K]` of `sinkhorn_potential` over more positions, these among them; None: over these alone.
        group: None: this process alone.

    Returns:
        Scalar: this rank's share, scaled so that the mean over ranks, of values as of gradients, is the global loss.

    Raises:
        ValueError: as `prototype_cross_entropy`.
    """
    return prototype_cross_entropy(
        student_features,
        teacher_features,
        student_prototypes,
        teacher_prototypes,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        cu_seqlens=masked.cu_seqlens,
        sinkhorn_iterations=sinkhorn_iterations,
        potential=potential,
        group=group,
    )


@torch.no_grad()
def teacher_agreement(student_features: Tensor, teacher_features: Tensor, masked: PackedLayout) -> Tensor:
    """Cosine of what student and teacher say of a masked position: mean over a clip's, then over these clips.

    Args:
        student_features: `[M, D]` floating point, L2-normalised.
        teacher_features: `[M, D]`.
        masked: which of the M positions belong to which clip. A clip without any counts as 0.

    Returns:
        Scalar in [-1, 1], float32 (float64 for float64), without a gradient.
    """
    dtype = torch.promote_types(student_features.dtype, torch.float32)
    cosine = torch.linalg.vecdot(student_features.to(dtype), teacher_features.to(dtype))
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
    """How evenly the teacher uses its prototypes over the masked positions of all ranks.

    The entropy of `prototype_usage`, in nats: `ln K` where all K prototypes are used alike, 0 where one takes every
    position. Sinkhorn-Knopp balances the targets whatever the features are; this is before it, and falls where the
    teacher collapses.

    Args:
        teacher_features: `[M, D]` floating point, L2-normalised.
        teacher_prototypes: `[K, D]`.
        teacher_temperature: positive.
        group: None: this process alone.

    Returns:
        Scalar, the same on every rank, without a gradient.
    """
    usage = prototype_usage(teacher_features, teacher_prototypes, teacher_temperature=teacher_temperature, group=group)
    return torch.special.entr(usage).sum()
