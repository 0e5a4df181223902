"""Prototype loss by Triton kernels and cuBLAS: no host synchronisation, fit for CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.backends import triton_support
from slap_fast.ops.backends.triton_support import matrix


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted sum over tokens and its gradients, empty where not needed."""
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
    )


def _contiguous(potential: Tensor | None) -> Tensor | None:
    return None if potential is None else potential.contiguous()
