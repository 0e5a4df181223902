"""The student, which sees part of a clip, predicts what the teacher, which sees all, says at the hidden positions."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from slap_fast.ops.packing import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy


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
