"""What `prototype_cross_entropy` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor


def validate(
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    cu_seqlens: Tensor | None,
) -> None:
    """Raise the ValueError that `prototype_cross_entropy` documents, if a tensor does not fit."""
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
    _require_positive(teacher_temperature=teacher_temperature)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")


def _require_positive(**temperatures: float) -> None:
    for name, temperature in temperatures.items():
        if not temperature > 0:
            raise ValueError(f"{name} is {temperature}; it must be positive")
