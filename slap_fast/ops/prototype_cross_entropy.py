"""Self-distillation loss: a student's scores over prototypes follow those of a teacher, balanced by Sinkhorn-Knopp.

DINOv2 (arXiv 2304.07193, section 4), in the log domain and without the scores. A balanced teacher assignment is
`softmax(scores / temperature - potential)`, with one potential per prototype: the per-token normalisation that ends
each Sinkhorn round is that softmax, and constants (total mass, number of tokens or prototypes) cancel in it. So a round
only has to sum `exp` over tokens into K numbers, and these are all that ranks exchange. The `[T, K]` scores exist one
chunk of tokens at a time and are recomputed by each sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.ops import collectives, dispatch

# Elements of the student's and of the teacher's scores held at once: 16 MiB in float32, small enough for the allocator
# to reuse between chunks.
_MAX_SCORES = 1 << 22


@torch.library.custom_op("slap_fast::sinkhorn_sweep", mutates_args=())
def _sinkhorn_sweep(
    teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str
) -> Tensor:
    """`[K]` log of each prototype's mass over these tokens, once tokens are normalised under `potential`.

    None: tokens are not normalised, the first round. The result, combined over ranks, is the next potential.
    """
    return _sweep_torch(teacher, prototypes, temperature, potential)


@_sinkhorn_sweep.register_fake
def _(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None, backend: str) -> Tensor:
    return teacher.new_empty(prototypes.shape[0], dtype=_accumulator(teacher.dtype))


@torch.library.custom_op("slap_fast::prototype_cross_entropy", mutates_args=())
def _prototype_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    backend: str,
) -> Tensor:
    """The weighted sum over tokens, scalar."""
    return _forward_torch(
        student,
        teacher,
        student_prototypes,
        teacher_prototypes,
        potential,
        token_weight,
        student_temperature,
        teacher_temperature,
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
    backend: str,
) -> Tensor:
    return student.new_empty((), dtype=_accumulator(student.dtype))


@torch.library.custom_op("slap_fast::prototype_cross_entropy_backward", mutates_args=())
def _prototype_cross_entropy_backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the student's features and prototypes."""
    return _backward_torch(
        grad,
        student,
        teacher,
        student_prototypes,
        teacher_prototypes,
        potential,
        token_weight,
        student_temperature,
        teacher_temperature,
    )


@_prototype_cross_entropy_backward.register_fake
def _(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return student.new_empty(student.shape), student_prototypes.new_empty(student_prototypes.shape)


dispatch.register("prototype_cross_entropy", [dispatch.Backend(name="torch")])


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(tokens: int, prototypes: int) -> Iterator[slice]:
    chunk_size = max(1, _MAX_SCORES // prototypes)
    for begin in range(0, tokens, chunk_size):
        yield slice(begin, begin + chunk_size)


def _teacher_logits(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """`[c, K]`, in the dtype of `prototypes`."""
    logits = (teacher.to(prototypes.dtype) @ prototypes.T).div_(temperature)
    return logits if potential is None else logits.sub_(potential)


def _sweep_torch(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    dtype = _accumulator(teacher.dtype)
    precise = prototypes.to(dtype)
    mass = precise.new_full(precise.shape[:1], -math.inf)
    for rows in _chunks(teacher.shape[0], prototypes.shape[0]):
        logits = _teacher_logits(teacher[rows], precise, temperature, potential)
        if potential is not None:
            logits = logits.sub_(logits.logsumexp(1, keepdim=True)).add_(potential)
        mass = torch.logaddexp(mass, logits.logsumexp(0))
    return mass


def _forward_torch(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
) -> Tensor:
    dtype = _accumulator(student.dtype)
    student_prototypes, teacher_prototypes = student_prototypes.to(dtype), teacher_prototypes.to(dtype)
    total = student.new_zeros((), dtype=dtype)
    for rows in _chunks(student.shape[0], student_prototypes.shape[0]):
        target = _teacher_logits(teacher[rows], teacher_prototypes, teacher_temperature, potential).softmax(1)
        scores = (student[rows].to(dtype) @ student_prototypes.T).div_(student_temperature)
        losses = scores.logsumexp(1) - target.mul_(scores).sum(1)
        total += torch.dot(losses, token_weight[rows])
    return total


def _backward_torch(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    dtype = token_weight.dtype
    precise_prototypes, teacher_prototypes = student_prototypes.to(dtype), teacher_prototypes.to(dtype)
    grad_student = student.new_empty(student.shape)
    grad_prototypes = torch.zeros_like(precise_prototypes, memory_format=torch.contiguous_format)
    for rows in _chunks(student.shape[0], student_prototypes.shape[0]):
        target = _teacher_logits(teacher[rows], teacher_prototypes, teacher_temperature, potential).softmax(1)
        chunk = student[rows].to(dtype)
        grad_scores = (chunk @ precise_prototypes.T).div_(student_temperature).softmax(1).sub_(target)
        grad_scores *= (token_weight[rows] * grad / student_temperature)[:, None]
        grad_student[rows] = (grad_scores @ precise_prototypes).to(student.dtype)
        grad_prototypes.addmm_(grad_scores.T, chunk)
    return grad_student, grad_prototypes.to(student_prototypes.dtype)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_student, grad_prototypes = _prototype_cross_entropy_backward(
        grad,
        *ctx.saved_tensors,
        ctx.backend,
    )
    return grad_student, None, grad_prototypes, *[None] * 6


_prototype_cross_entropy.register_autograd(_backward, setup_context=_setup_context)


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
    _validate(student, teacher, student_prototypes, teacher_prototypes, cu_seqlens)
    _validate_options(
        student_temperature, teacher_temperature, centering, sinkhorn_iterations, center, teacher_prototypes
    )
    chosen = dispatch.select("prototype_cross_entropy", backend, device=student.device, dtype=student.dtype)
    teacher, teacher_prototypes = teacher.detach(), teacher_prototypes.detach()
    dtype = _accumulator(student.dtype)
    # A schedule changes the temperature at every step: as a number it would be a constant of the compiled graph. A
    # product keeps the compiler from specialising, which filling a tensor with it does not.
    student_divisor = student.new_ones((), dtype=dtype) * student_temperature
    teacher_divisor = student.new_ones((), dtype=dtype) * teacher_temperature
    potential = None
    if centering == "sinkhorn":
        for _ in range(sinkhorn_iterations):
            mass = _sinkhorn_sweep(teacher, teacher_prototypes, teacher_divisor, potential, chosen)
            potential = sum(collectives.logsumexp_over_ranks(mass, torch.zeros_like(mass), group))
    elif center is not None:
        potential = center.detach().to(dtype) / teacher_divisor
    return _prototype_cross_entropy(
        student,
        teacher,
        student_prototypes,
        teacher_prototypes,
        potential,
        _token_weight(cu_seqlens, student, group),
        student_divisor,
        teacher_divisor,
        chosen,
    )


def _token_weight(cu_seqlens: Tensor | None, student: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """`[T]` weights that make a sum over tokens this rank's share of the mean over clips, or over tokens."""
    tokens, dtype = student.shape[0], _accumulator(student.dtype)
    parts = tokens if cu_seqlens is None else cu_seqlens.shape[0] - 1
    total = collectives.sum_over_ranks(student.new_full((), parts, dtype=torch.int64), group).clamp_min(1)
    share = collectives.world_size(group) / total.to(dtype)
    if cu_seqlens is None:
        return share.expand(tokens).contiguous()
    lengths = cu_seqlens.diff()
    clip = torch.repeat_interleave(lengths, output_size=tokens)
    return share / lengths[clip].to(dtype)


def _validate(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    cu_seqlens: Tensor | None,
) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student, teacher have shapes {tuple(student.shape)}, {tuple(teacher.shape)}; pass two of [T, D]"
        )
    if (
        student_prototypes.dim() != 2
        or student_prototypes.shape != teacher_prototypes.shape
        or student_prototypes.shape[1] != student.shape[1]
        or student_prototypes.shape[0] == 0
    ):
        raise ValueError(
            f"student_prototypes, teacher_prototypes have shapes {tuple(student_prototypes.shape)}, "
            f"{tuple(teacher_prototypes.shape)}; pass two of [K, {student.shape[1]}], K > 0"
        )
    tensors = (student, teacher, student_prototypes, teacher_prototypes)
    if len({tensor.dtype for tensor in tensors}) > 1 or not student.dtype.is_floating_point:
        raise ValueError(f"features and prototypes are {[t.dtype for t in tensors]}; pass one floating-point dtype")
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError(f"features and prototypes are on {[str(t.device) for t in tensors]}; use one device")
    if cu_seqlens is None:
        return
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; pass [N + 1] int32 or int64"
        )
    if cu_seqlens.device != student.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, student on {student.device}; move one to the other")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != student.shape[0] or offsets != sorted(offsets):
        raise ValueError(f"cu_seqlens is {offsets}; it must rise from 0 to the {student.shape[0]} tokens")


def _validate_options(
    student_temperature: float,
    teacher_temperature: float,
    centering: str,
    sinkhorn_iterations: int,
    center: Tensor | None,
    prototypes: Tensor,
) -> None:
    for name, temperature in (("student", student_temperature), ("teacher", teacher_temperature)):
        if not temperature > 0:
            raise ValueError(f"{name}_temperature is {temperature}; it must be positive")
    if centering not in ("sinkhorn", "center", "softmax"):
        raise ValueError(f"centering is {centering!r}; choose 'sinkhorn', 'center' or 'softmax'")
    if centering == "sinkhorn" and sinkhorn_iterations < 1:
        raise ValueError(f"sinkhorn_iterations is {sinkhorn_iterations}; it must be at least 1")
    if (center is not None) != (centering == "center"):
        raise ValueError(f"centering is {centering!r} with center {'absent' if center is None else 'given'}")
    if center is not None and (center.shape != prototypes.shape[:1] or center.device != prototypes.device):
        raise ValueError(
            f"center has shape {tuple(center.shape)} on {center.device}; pass [{prototypes.shape[0]}] on "
            f"{prototypes.device}"
        )
