"""Prototype loss by Triton kernels and cuBLAS: no host synchronisation, fit for CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.kernels import variants
from slap_fast.ops import triton_support
from slap_fast.ops.tensor_checks import matrix

# Bytes of the teacher's scores that are kept, at most: 4 GiB hold those of 65,536 tokens for 32,768 prototypes in 16
# bits. It does not depend on what memory is free: the same call gives the same bits.
_MOST_BYTES = 1 << 32


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call, None if they can."""
    return triton_support.rejects_dtype("features, prototypes", dtype) or triton_support.rejects_device(device)


def sinkhorn_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """`[K]` log of each prototype's mass over these tokens, once they are normalised under `potential`."""
    from slap_fast.kernels import prototype_cross_entropy as kernels

    teacher, prototypes = map(matrix, (teacher, prototypes))
    return kernels.sinkhorn_sweep(teacher, prototypes, temperature, _contiguous(potential))


def keeps_scores(teacher: Tensor, prototypes: Tensor) -> bool:
    """Whether the rounds of Sinkhorn and the loss share the teacher's scores. Traced by the compiler."""
    itemsize = 4 if teacher.dtype == torch.float32 else 2
    few = teacher.shape[0] * prototypes.shape[0] * itemsize <= _MOST_BYTES
    return few and variants.chosen("prototype_scores") == "stored"


def new_scores(teacher: Tensor, prototypes: Tensor) -> Tensor:
    """Memory for the scores, of more rows and columns than there are."""
    from slap_fast.kernels.prototype_cross_entropy import stored_scores as prototype_scores

    return prototype_scores.new_scores(teacher, prototypes)


def first_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """`sinkhorn_sweep` without a potential, and the scores it came by."""
    from slap_fast.kernels import prototype_cross_entropy as kernels

    teacher, prototypes = map(matrix, (teacher, prototypes))
    scores = new_scores(teacher, prototypes)
    return kernels.sinkhorn_sweep(teacher, prototypes, temperature, None, scores), scores


def later_sweep(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> Tensor:
    """`sinkhorn_sweep` under the potential of the sweep before, over `tokens` rows of its scores."""
    from slap_fast.kernels.prototype_cross_entropy import stored_scores as prototype_scores

    return prototype_scores.sweep(scores, tokens, 1.0 / temperature, potential)


def loss_and_gradients(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    student_needs_grad: bool,
    prototypes_needs_grad: bool,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted sum over tokens and its gradients, empty where not needed; `scores` of `first_sweep`, if any."""
    from slap_fast.kernels import prototype_cross_entropy as kernels

    return kernels.loss_and_gradients(
        matrix(student),
        matrix(teacher),
        matrix(student_prototypes),
        matrix(teacher_prototypes),
        _contiguous(potential),
        token_weight.contiguous(),
        student_temperature,
        teacher_temperature,
        student_needs_grad,
        prototypes_needs_grad,
        scores,
    )


def _contiguous(potential: Tensor | None) -> Tensor | None:
    return None if potential is None else potential.contiguous()
