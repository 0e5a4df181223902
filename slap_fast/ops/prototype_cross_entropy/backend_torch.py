"""Prototype loss by PyTorch's operations, on any device: scores and gradients of one chunk of tokens at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from slap_fast.ops.loss_gradients import empty_gradient
from slap_fast.ops.tensor_checks import accumulator

# Elements of the student's and of the teacher's scores held at once: 16 MiB in float32, small enough for the allocator
# to reuse between chunks.
_MAX_SCORES = 1 << 22


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def _chunks(tokens: int, prototypes: int) -> Iterator[slice]:
    chunk_size = max(1, _MAX_SCORES // prototypes)
    for begin in range(0, tokens, chunk_size):
        yield slice(begin, begin + chunk_size)


def _teacher_logits(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """`[c, K]`, in the dtype of `prototypes`."""
    logits = (teacher.to(prototypes.dtype) @ prototypes.T).div_(temperature)
    return logits if potential is None else logits.sub_(potential)


def sinkhorn_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """`[K]` log of each prototype's mass over these tokens, once they are normalised under `potential`."""
    precise = prototypes.to(accumulator(teacher.dtype))
    mass = precise.new_full(precise.shape[:1], -math.inf)
    for rows in _chunks(teacher.shape[0], prototypes.shape[0]):
        logits = _teacher_logits(teacher[rows], precise, temperature, potential)
        if potential is not None:
            logits = logits.sub_(logits.logsumexp(1, keepdim=True)).add_(potential)
        mass = torch.logaddexp(mass, logits.logsumexp(0))
    return mass


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
    dtype = token_weight.dtype
    grad_student = empty_gradient(student, student_needs_grad)
    grad_prototypes = empty_gradient(student_prototypes, prototypes_needs_grad).zero_()
    student_prototypes, teacher_prototypes = student_prototypes.to(dtype), teacher_prototypes.to(dtype)
    total = token_weight.new_zeros(())
    for rows in _chunks(student.shape[0], student_prototypes.shape[0]):
        target = _teacher_logits(teacher[rows], teacher_prototypes, teacher_temperature, potential).softmax(1)
        chunk = student[rows].to(dtype)
        scores = (chunk @ student_prototypes.T).div_(student_temperature)  # [c, K]
        losses = scores.logsumexp(1) - torch.linalg.vecdot(target, scores)
        total += torch.dot(losses, token_weight[rows])
        if not student_needs_grad and not prototypes_needs_grad:
            continue
        grad_scores = scores.softmax(1).sub_(target)
        grad_scores *= (token_weight[rows] / student_temperature)[:, None]
        if student_needs_grad:
            torch.mm(grad_scores, student_prototypes, out=grad_student[rows])
        if prototypes_needs_grad:
            grad_prototypes.addmm_(grad_scores.T, chunk)
    return total, grad_student, grad_prototypes
