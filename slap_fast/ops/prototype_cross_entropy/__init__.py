"""Self-distillation loss: a student's scores over prototypes follow those of a teacher, balanced by Sinkhorn-Knopp.

DINOv2 (arXiv 2304.07193, section 4), in the log domain and without the scores. A balanced teacher assignment is
`softmax(scores / temperature - potential)`, with one potential per prototype: the per-token normalisation that ends
each Sinkhorn round is that softmax, and constants (total mass, number of tokens or prototypes) cancel in it. So a round
only has to sum `exp` over tokens into K numbers, and these are all that ranks exchange. The `[T, K]` scores exist one
chunk of tokens at a time: each round recomputes the teacher's, and a last sweep makes loss and gradients. The Triton
backend keeps the teacher's, where they fit a budget, and the rounds and the loss read them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import autocast, collectives, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.loss_gradients import empty_gradient, needs_grad, register_autograd
from slap_fast.ops.packed import item_of_each
from slap_fast.ops.prototype_cross_entropy import (
    backend_native as prototype_native,
)
from slap_fast.ops.prototype_cross_entropy import (
    backend_torch as prototype_torch,
)
from slap_fast.ops.prototype_cross_entropy import (
    backend_triton as prototype_triton,
)
from slap_fast.ops.prototype_cross_entropy.call import PrototypeBackend
from slap_fast.ops.prototype_cross_entropy.validation import (
    validate,
    validate_features,
    validate_loss,
    validate_options,
    validate_potential,
    validate_scores,
    validate_sweep,
)
from slap_fast.ops.tensor_checks import accumulator, require

# In the order of preference.
BACKENDS: dict[str, PrototypeBackend] = {
    "native": prototype_native,
    "triton": prototype_triton,
    "torch": prototype_torch,
}
dispatch.register(
    "prototype_cross_entropy",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


def _check_sweep(
    teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str
) -> tuple:
    validate_sweep(teacher, prototypes, temperature, potential)
    return teacher, prototypes, temperature, potential, _select(backend, teacher, prototypes)


def _check_first_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple:
    return _check_sweep(teacher, prototypes, temperature, None, "triton")[:3]


def _check_later_sweep(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> tuple:
    validate_scores(scores, tokens, potential.shape[0], potential.device)
    require("potential", potential, potential.shape[:1], torch.float32, scores.device)
    return scores, tokens, temperature, potential


def _check_loss(
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
    backend: str,
    scores: Tensor | None = None,
) -> tuple:
    validate_features(student, teacher, student_prototypes, teacher_prototypes)
    temperatures = student_temperature, teacher_temperature
    validate_loss(student, student_prototypes, potential, token_weight, temperatures, scores)
    chosen = _select(backend, student, student_prototypes)
    if scores is not None and chosen != "triton":
        raise ValueError(f"scores are given, which backend {chosen!r} does not read; pass None")
    tensors = student, teacher, student_prototypes, teacher_prototypes, potential, token_weight
    return *tensors, *temperatures, student_needs_grad, prototypes_needs_grad, chosen, scores


@custom_op("slap_fast::sinkhorn_sweep", check=_check_sweep, rule=autocast.low, cast=("teacher", "prototypes"))
def _sinkhorn_sweep(
    teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str
) -> Tensor:
    """The result, combined over ranks, is the next potential."""
    return BACKENDS[backend].sinkhorn_sweep(teacher, prototypes, temperature, potential)


@_sinkhorn_sweep.register_fake
def _(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str) -> Tensor:
    return teacher.new_empty(prototypes.shape[0], dtype=accumulator(teacher.dtype))


@custom_op(
    "slap_fast::sinkhorn_first_sweep", check=_check_first_sweep, rule=autocast.low, cast=("teacher", "prototypes")
)
def _first_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """The sweep without a potential, and the scores, which the Triton backend keeps for what follows."""
    return prototype_triton.first_sweep(teacher, prototypes, temperature)


@_first_sweep.register_fake
def _(teacher: Tensor, prototypes: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    mass = teacher.new_empty(prototypes.shape[0], dtype=torch.float32)
    return mass, prototype_triton.new_scores(teacher, prototypes)


@custom_op("slap_fast::sinkhorn_later_sweep", check=_check_later_sweep)
def _later_sweep(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> Tensor:
    """The sweep under the potential of the one before."""
    return prototype_triton.later_sweep(scores, tokens, temperature, potential)


@_later_sweep.register_fake
def _(scores: Tensor, tokens: int, temperature: Tensor, potential: Tensor) -> Tensor:
    return torch.empty_like(potential)


@custom_op(
    "slap_fast::prototype_cross_entropy",
    check=_check_loss,
    rule=autocast.low,
    cast=("student", "teacher", "student_prototypes", "teacher_prototypes"),
)
def _prototype_cross_entropy(
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
    backend: str,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    function = BACKENDS[backend].loss_and_gradients
    if scores is not None:
        function = functools.partial(prototype_triton.loss_and_gradients, scores=scores)
    return function(
        student,
        teacher,
        student_prototypes,
        teacher_prototypes,
        potential,
        token_weight,
        student_temperature,
        teacher_temperature,
        student_needs_grad,
        prototypes_needs_grad,
    )


@_prototype_cross_entropy.register_fake
def _(
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
    backend: str,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        student.new_empty((), dtype=accumulator(student.dtype)),
        empty_gradient(student, student_needs_grad),
        empty_gradient(student_prototypes, prototypes_needs_grad),
    )


register_autograd(_prototype_cross_entropy, (0, 2))


def sinkhorn_potential(
    teacher: Tensor,
    teacher_prototypes: Tensor,
    *,
    teacher_temperature: float,
    iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """The potential of each prototype that balances the teacher's assignment of T tokens over K prototypes.

    For `prototype_cross_entropy` over part of these tokens: the target of a token then depends on all of them.

    Args:
        teacher: `[T, D]` float32, bfloat16, float16 or float64, L2-normalised by the caller.
        teacher_prototypes: `[K, D]`, dtype and device of `teacher`.
        teacher_temperature: positive.
        iterations: rounds of Sinkhorn-Knopp, at least 1.
        group: the ranks whose tokens are balanced together, their numbers may differ and may be 0; None: this process
            alone.
        backend: as for `prototype_cross_entropy`.

    Returns:
        `[K]` float32 (float64 for float64), the same on every rank, without a gradient.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, or a backend that cannot serve.
    """
    teacher, teacher_prototypes = autocast.cast(autocast.low, teacher, teacher_prototypes)
    validate_potential(teacher, teacher_prototypes, teacher_temperature, iterations)
    chosen = _select(backend, teacher, teacher_prototypes)
    potential, _ = _sinkhorn(
        teacher.detach(), teacher_prototypes.detach(), _divisor(teacher, teacher_temperature), iterations, group, chosen
    )
    return potential


def prototype_usage(
    teacher: Tensor,
    teacher_prototypes: Tensor,
    *,
    teacher_temperature: float,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """How the teacher, before its assignment is balanced, shares out T tokens among K prototypes.

    Args:
        teacher: as for `sinkhorn_potential`, as are the others.

    Returns:
        `[K]` float32 (float64 for float64), the mean over tokens of `softmax(teacher @ teacher_prototypes.T /
        teacher_temperature)`: the same on every rank, without a gradient, and zeros if no rank has a token.

    Raises:
        ValueError: as `sinkhorn_potential`.
    """
    teacher, teacher_prototypes = autocast.cast(autocast.low, teacher, teacher_prototypes)
    validate_potential(teacher, teacher_prototypes, teacher_temperature, iterations=1)
    chosen = _select(backend, teacher, teacher_prototypes)
    temperature = _divisor(teacher, teacher_temperature)
    # Under a potential of 0 a sweep normalises each token over the prototypes, and sums over tokens.
    even = temperature.new_zeros(teacher_prototypes.shape[0])
    mass = _sinkhorn_sweep(teacher.detach(), teacher_prototypes.detach(), temperature, even, chosen)
    largest, log_sum = collectives.logsumexp_over_ranks(mass, torch.zeros_like(mass), group)
    return (largest + log_sum).softmax(0).nan_to_num(0.0)


def _sinkhorn(
    teacher: Tensor,
    prototypes: Tensor,
    temperature: Tensor,
    iterations: int,
    group: dist.ProcessGroup | None,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """The potential, and the teacher's scores where the backend keeps them."""
    scores = None
    if backend == "triton" and prototype_triton.keeps_scores(teacher, prototypes):
        mass, scores = _first_sweep(teacher, prototypes, temperature)
    else:
        mass = _sinkhorn_sweep(teacher, prototypes, temperature, None, backend)
    potential: Any = sum(collectives.logsumexp_over_ranks(mass, torch.zeros_like(mass), group))
    for _ in range(1, iterations):
        if scores is None:
            mass = _sinkhorn_sweep(teacher, prototypes, temperature, potential, backend)
        else:
            mass = _later_sweep(scores, teacher.shape[0], temperature, potential)
        potential = sum(collectives.logsumexp_over_ranks(mass, torch.zeros_like(mass), group))
    return potential, scores


def _divisor(features: Tensor, temperature: float) -> Tensor:
    # A schedule changes the temperature at every step: as a number it would be a constant of the compiled graph. A
    # product keeps the compiler from specialising, which filling a tensor with it does not.
    return features.new_ones((), dtype=accumulator(features.dtype)) * temperature


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
    """Cross-entropy of the student's distribution over K prototypes under the teacher's, for T tokens.

    Scores are `features @ prototypes.T / temperature`. A token's loss is `-sum(target * log_softmax(student scores))`;
    the loss is the mean over clips of the mean over a clip's tokens. No gradient reaches the teacher's side.

    Args:
        student: `[T, D]` float32, bfloat16, float16 or float64, L2-normalised by the caller. Products and sums are made
            in float32 (float64 for float64).
        teacher: `[T, D]`, the same positions seen by the teacher; dtype and device of `student`.
        student_prototypes: `[K, D]`, dtype and device of `student`.
        teacher_prototypes: `[K, D]`, the same.
        student_temperature: positive.
        teacher_temperature: positive.
        cu_seqlens: `[N + 1]` int32 or int64 offsets of clips from 0 to T. A clip without tokens counts, with a loss
            of 0. None: all tokens weigh the same.
        centering: how the target follows from the teacher's scores. "sinkhorn": balanced over the tokens of all ranks;
            "center": softmax of the scores less `center`; "softmax": plain.
        sinkhorn_iterations: at least 1.
        center: `[K]` mean of the teacher's scores before the temperature, kept by the caller; for "center" only.
        potential: `[K]` of `sinkhorn_potential`, where these tokens are part of those to balance; for "sinkhorn" only.
            None: over the tokens of `group`.
        group: the ranks that share the batch, each with its own tokens and clips, which may differ and may be 0; None:
            this process alone. See `collectives` for the gradient convention.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        Scalar, float32 (float64 for float64): this rank's share, scaled so that the mean over ranks, of values as of
        gradients, is the global loss. With no token on any rank it is 0.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit, or a backend that cannot serve. Offsets on a GPU
            are not read back, hence not checked.
    """
    student, teacher, student_prototypes, teacher_prototypes = autocast.cast(
        autocast.low, student, teacher, student_prototypes, teacher_prototypes
    )
    validate(student, teacher, student_prototypes, teacher_prototypes, cu_seqlens)
    validate_options(
        student_temperature, teacher_temperature, centering, sinkhorn_iterations, center, potential, teacher_prototypes
    )
    chosen = _select(backend, student, student_prototypes)
    teacher, teacher_prototypes = teacher.detach(), teacher_prototypes.detach()
    student_divisor, teacher_divisor = _divisor(student, student_temperature), _divisor(student, teacher_temperature)
    scores = None
    if potential is not None:
        potential = potential.detach().to(teacher_divisor.dtype)
    elif centering == "sinkhorn":
        potential, scores = _sinkhorn(teacher, teacher_prototypes, teacher_divisor, sinkhorn_iterations, group, chosen)
    elif center is not None:
        potential = center.detach().to(teacher_divisor.dtype) / teacher_divisor
    total, _, _ = _prototype_cross_entropy(
        student,
        teacher,
        student_prototypes,
        teacher_prototypes,
        potential,
        _token_weight(cu_seqlens, student, group),
        student_divisor,
        teacher_divisor,
        needs_grad(student),
        needs_grad(student_prototypes),
        chosen,
        scores,
    )
    return total


def _select(backend: str, features: Tensor, prototypes: Tensor) -> str:
    return dispatch.select(
        "prototype_cross_entropy",
        backend,
        device=features.device,
        dtype=features.dtype,
        width=features.shape[1],
        prototypes=prototypes.shape[0],
    )


def _token_weight(cu_seqlens: Tensor | None, student: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """`[T]` weights that make a sum over tokens this rank's share of the mean over clips, or over tokens."""
    tokens, dtype = student.shape[0], accumulator(student.dtype)
    parts = tokens if cu_seqlens is None else cu_seqlens.shape[0] - 1
    total = collectives.sum_over_ranks(student.new_full((), parts, dtype=torch.int64), group).clamp_min(1)
    share = collectives.world_size(group) / total.to(dtype)
    if cu_seqlens is None:
        return share.expand(tokens).contiguous()
    return share / cu_seqlens.diff()[item_of_each(cu_seqlens, tokens)].to(dtype)
