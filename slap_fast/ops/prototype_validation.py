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
    prototypes: Tensor,
) -> None:
    """The same for its options."""
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
