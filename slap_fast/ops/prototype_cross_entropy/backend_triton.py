"""Triton backend, GPU: Triton kernels and cuBLAS, no host synchronization, usable in CUDA graphs, any width."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.kernels import variants
from slap_fast.ops import triton_support
from slap_fast.ops.prototype_cross_entropy.call import PrototypeCall
from slap_fast.ops.tensor_checks import matrix

# Bytes of stored scores, at most: 4 GiB hold those of 65,536 tokens and 32,768 prototypes in 16 bits. A constant, and
# not a share of the free memory: the same call always gives the same bits.
_MAX_BYTES = 1 << 32


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call; None if they can."""
    return triton_support.rejects_dtype("features, prototypes", dtype) or triton_support.rejects_device(device)


def sinkhorn_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """See `Backend.sinkhorn_sweep`."""
    from slap_fast.kernels import prototype_cross_entropy as kernels

    teacher, prototypes = matrix(teacher), matrix(prototypes)
    return kernels.sinkhorn_sweep(teacher, prototypes, temperature, potential=_contiguous(potential))


def stores_scores(teacher: Tensor, prototypes: Tensor) -> bool:
    """Whether the first sweep stores the teacher's scores for the other sweeps and the loss. Traced by the compiler."""
    itemsize = 4 if teacher.dtype == torch.float32 else 2
    fits = teacher.shape[0] * prototypes.shape[0] * itemsize <= _MAX_BYTES
    return fits and variants.chosen("prototype_scores") == "stored"


def new_scores(teacher: Tensor, prototypes: Tensor) -> Tensor:
    """Memory for the scores, rounded up to whole tiles."""
    from slap_fast.kernels.prototype_cross_entropy import stored_scores

    return stored_scores.new_scores(teacher, prototypes)


def first_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """`sinkhorn_sweep` without a potential, and the scores."""
    from slap_fast.kernels import prototype_cross_entropy as kernels

    teacher, prototypes = matrix(teacher), matrix(prototypes)
    scores = new_scores(teacher, prototypes)
    return kernels.sinkhorn_sweep(teacher, prototypes, temperature, store_to=scores), scores


def later_sweep(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> Tensor:
    """`sinkhorn_sweep` over the first `tokens` rows of stored scores."""
    from slap_fast.kernels.prototype_cross_entropy import stored_scores

    return stored_scores.sweep(scores, tokens, 1.0 / temperature, potential)


def loss_and_gradients(call: PrototypeCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.loss_and_gradients`."""
    from slap_fast.kernels import prototype_cross_entropy as kernels

    call = call._replace(
        student=matrix(call.student),
        teacher=matrix(call.teacher),
        student_prototypes=matrix(call.student_prototypes),
        teacher_prototypes=matrix(call.teacher_prototypes),
        potential=_contiguous(call.potential),
        token_weight=call.token_weight.contiguous(),
    )
    return kernels.loss_and_gradients(**call._asdict())


def _contiguous(potential: Tensor | None) -> Tensor | None:
    return None if potential is None else potential.contiguous()
