"""Self-distillation loss over prototypes without the `[T, K]` scores: a student follows a teacher's assignment.

    loss = prototype_cross_entropy(
        student, teacher, student_prototypes, teacher_prototypes,     # [T, D], [T, D], [K, D], [K, D] -> []
        student_temperature=0.1, teacher_temperature=0.05, cu_seqlens=cu_seqlens,
    )

DINOv2 (arXiv 2304.07193, section 4). Scores exist for one chunk of tokens at a time, and where gradients are needed
they are computed from the same chunk. `sinkhorn.py` has the balancing of the targets.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import autocast, collectives, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.loss_gradients import empty_gradient, needs_grad, register_autograd
from slap_fast.ops.packed import item_of_each
from slap_fast.ops.prototype_cross_entropy import sinkhorn
from slap_fast.ops.prototype_cross_entropy.call import (
    Backend,
    PrototypeCall,
    check,
    select,
    temperature_tensor,
    validate_features,
    validate_options,
)
from slap_fast.ops.prototype_cross_entropy.sinkhorn import prototype_usage, sinkhorn_potential
from slap_fast.ops.tensor_checks import accumulator

__all__ = ["prototype_cross_entropy", "prototype_usage", "sinkhorn_potential"]

BACKENDS: dict[str, Backend] = sinkhorn.BACKENDS  # one table for the sweeps and the loss
dispatch.register(
    "prototype_cross_entropy",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op(
    "slap_fast::prototype_cross_entropy",
    check=check,
    rule=autocast.low,
    cast=("student", "teacher", "student_prototypes", "teacher_prototypes"),
)
def _prototype_cross_entropy(call: PrototypeCall, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].loss_and_gradients(call)


@_prototype_cross_entropy.register_fake
def _(call: PrototypeCall, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        call.student.new_empty((), dtype=accumulator(call.student.dtype)),
        empty_gradient(call.student, call.student_needs_grad),
        empty_gradient(call.student_prototypes, call.prototypes_needs_grad),
    )


register_autograd(_prototype_cross_entropy, ("student", "student_prototypes"))


def prototype_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    cu_seqlens: Tensor | None = None,
    centering: str = "sinkhorn",
    sinkhorn_iterations: int = 3,
    center: Tensor | None = None,
    potential: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """Cross-entropy between the teacher's and the student's distributions over K prototypes, for T tokens.

        scores = student @ student_prototypes.T / student_temperature                # [T, K]
        logits = teacher @ teacher_prototypes.T / teacher_temperature                # [T, K]
        target = softmax_k(logits - potential)
        token_loss = -sum_k(target * log_softmax_k(scores))                          # [T]

    The loss is the mean over clips of each clip's mean over its tokens. The teacher's side gets no gradient.

    Args:
        student: `[T, D]` float32, bfloat16, float16 or float64, L2-normalized by the caller. Products and sums are
            float32 (float64 for float64); under autocast features and prototypes are cast to its dtype first.
        teacher: `[T, D]`, the teacher's features at the same positions; dtype and device of `student`.
        student_prototypes: `[K, D]`, dtype and device of `student`.
        teacher_prototypes: `[K, D]`, the same.
        student_temperature: positive.
        teacher_temperature: positive.
        cu_seqlens: `[N + 1]` int32 or int64 offsets of clips, from 0 to T. A clip without tokens has a loss of 0 and
            counts in the mean over clips. None: all tokens have the same weight.
        centering: the potential. "sinkhorn": `sinkhorn_potential`, which balances the targets; "center":
            `center / teacher_temperature`; "softmax": zeros.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp, at least 1.
        center: `[K]` mean of `teacher @ teacher_prototypes.T`, tracked by the caller; for "center" only.
        potential: `[K]` from `sinkhorn_potential`, if these tokens are part of those to balance; for "sinkhorn" only.
            None: computed over the tokens of `group`.
        group: the ranks that share the batch, each with its own tokens and clips, whose numbers may differ and may be
            0. None: this process alone. See `collectives` for the gradient convention.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        Scalar, float32 (float64 for float64): this rank's share, scaled so that the mean over ranks, of losses and of
        gradients, is the global loss and its gradient. 0 if no rank has a token.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, or a backend that cannot serve. Values of
            offsets on a GPU are not read back, hence not checked.
    """
    student, teacher, student_prototypes, teacher_prototypes = autocast.cast(
        autocast.low, student, teacher, student_prototypes, teacher_prototypes
    )
    validate_features(student, teacher, student_prototypes, teacher_prototypes)
    validate_options(
        student,
        student_prototypes,
        cu_seqlens=cu_seqlens,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        centering=centering,
        sinkhorn_iterations=sinkhorn_iterations,
        center=center,
        potential=potential,
    )
    chosen = select(student, student_prototypes, backend)
    teacher, teacher_prototypes = teacher.detach(), teacher_prototypes.detach()
    temperature = temperature_tensor(teacher, teacher_temperature)
    scores = None
    if potential is not None:
        potential = potential.detach().to(temperature.dtype)
    elif centering == "sinkhorn":
        potential, scores = sinkhorn.balance(
            teacher, teacher_prototypes, temperature, sinkhorn_iterations, group, chosen
        )
    elif center is not None:
        potential = center.detach().to(temperature.dtype) / temperature
    call = PrototypeCall(
        student,
        teacher,
        student_prototypes,
        teacher_prototypes,
        potential,
        _token_weight(cu_seqlens, student, group),
        temperature_tensor(student, student_temperature),
        temperature,
        needs_grad(student),
        needs_grad(student_prototypes),
        scores,
    )
    return _prototype_cross_entropy(call, chosen)[0]


def _token_weight(cu_seqlens: Tensor | None, student: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """`[T]` weights that turn a sum over tokens into this rank's share of the mean over clips, or over tokens."""
    tokens, dtype = student.shape[0], accumulator(student.dtype)
    items = tokens if cu_seqlens is None else cu_seqlens.shape[0] - 1
    total = collectives.detached_all_reduce_sum(student.new_full((), items, dtype=torch.int64), group)
    share = collectives.world_size(group) / total.to(dtype)
    if cu_seqlens is None:
        return share.expand(tokens).contiguous()
    return share / cu_seqlens.diff()[item_of_each(cu_seqlens, tokens)].to(dtype)
