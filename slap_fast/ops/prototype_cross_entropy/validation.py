"""What `prototype_cross_entropy` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.tensor_checks import accumulator, require


def validate(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    cu_seqlens: Tensor | None,
) -> None:
    """Raise the ValueError that `prototype_cross_entropy` documents, if a tensor does not fit."""
    validate_features(student, teacher, student_prototypes, teacher_prototypes)
    if cu_seqlens is not None:
        checked_offsets("cu_seqlens", cu_seqlens, student.shape[0], student.device, torch.int64)


def validate_features(student: Tensor, teacher: Tensor, student_prototypes: Tensor, teacher_prototypes: Tensor) -> None:
    """The same without offsets."""
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


def validate_options(
    student_temperature: float,
    teacher_temperature: float,
    centering: str,
    sinkhorn_iterations: int,
    center: Tensor | None,
    potential: Tensor | None,
    prototypes: Tensor,
) -> None:
    """The same for its options."""
    _require_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    if centering not in ("sinkhorn", "center", "softmax"):
        raise ValueError(f"centering is {centering!r}; choose 'sinkhorn', 'center' or 'softmax'")
    if centering == "sinkhorn" and sinkhorn_iterations < 1:
        raise ValueError(f"sinkhorn_iterations is {sinkhorn_iterations}; it must be at least 1")
    if (center is not None) != (centering == "center"):
        raise ValueError(f"centering is {centering!r} with center {'absent' if center is None else 'given'}")
    if potential is not None and centering != "sinkhorn":
        raise ValueError(f"centering is {centering!r} with potential given")
    for name, value in (("center", center), ("potential", potential)):
        if value is not None and (value.shape != prototypes.shape[:1] or value.device != prototypes.device):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} on {value.device}; pass [{prototypes.shape[0]}] on "
                f"{prototypes.device}"
            )


def validate_potential(teacher: Tensor, prototypes: Tensor, teacher_temperature: float, iterations: int) -> None:
    """Raise the ValueError that `sinkhorn_potential` documents, if anything does not fit."""
    _validate_teacher(teacher, prototypes)
    _require_positive(teacher_temperature=teacher_temperature)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")


def validate_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> None:
    """Raise the ValueError for what a registered sweep would misread."""
    _validate_teacher(teacher, prototypes)
    _require_scalars(teacher, temperature)
    if potential is not None:
        require("potential", potential, prototypes.shape[:1], accumulator(teacher.dtype), teacher.device)


def validate_loss(
    student: Tensor,
    prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    temperatures: tuple[Tensor, Tensor],
    scores: Tensor | None,
) -> None:
    """The same for the registered loss, beside features and prototypes."""
    dtype, device = accumulator(student.dtype), student.device
    if potential is not None:
        require("potential", potential, prototypes.shape[:1], dtype, device)
    require("token_weight", token_weight, student.shape[:1], dtype, device)
    _require_scalars(student, *temperatures)
    if scores is not None:
        validate_scores(scores, student.shape[0], prototypes.shape[0], device)


def validate_scores(scores: Tensor, tokens: int, prototypes: int, device: torch.device) -> None:
    """The same for scores that a sweep kept, of at least so many rows and columns."""
    if scores.dim() != 2 or scores.shape[0] < tokens or scores.shape[1] < prototypes or scores.device != device:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} on {scores.device}; pass those of sinkhorn_first_sweep, for "
            f"{tokens} tokens and {prototypes} prototypes on {device}"
        )


def _require_scalars(features: Tensor, *temperatures: Tensor) -> None:
    for temperature in temperatures:
        require("the temperature", temperature, (), accumulator(features.dtype), features.device)


def _validate_teacher(teacher: Tensor, prototypes: Tensor) -> None:
    if (
        teacher.dim() != 2
        or prototypes.dim() != 2
        or not prototypes.shape[0]
        or prototypes.shape[1] != teacher.shape[1]
    ):
        raise ValueError(
            f"teacher, teacher_prototypes have shapes {tuple(teacher.shape)}, {tuple(prototypes.shape)}; pass [T, D] "
            "and [K, D], K > 0"
        )
    if teacher.dtype != prototypes.dtype or not teacher.dtype.is_floating_point:
        raise ValueError(
            f"teacher, teacher_prototypes are {teacher.dtype}, {prototypes.dtype}; pass one floating-point dtype"
        )
    if teacher.device != prototypes.device:
        raise ValueError(f"teacher is on {teacher.device}, teacher_prototypes on {prototypes.device}; use one device")


def _require_positive(**temperatures: float) -> None:
    for name, temperature in temperatures.items():
        if not temperature > 0:
            raise ValueError(f"{name} is {temperature}; it must be positive")
