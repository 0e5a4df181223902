"""PyTorch backend, any device: scores and gradients of one chunk of tokens at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from slap_fast.ops.loss_gradients import empty_gradient
from slap_fast.ops.prototype_cross_entropy.call import PrototypeCall
from slap_fast.ops.tensor_checks import accumulator

# Elements of scores held at once, for the student and for the teacher: 16 MiB in float32, small enough for the
# allocator to reuse between chunks.
_MAX_SCORES = 1 << 22


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def sinkhorn_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """See `Backend.sinkhorn_sweep`."""
    precise = prototypes.to(accumulator(teacher.dtype))
    mass = precise.new_full(precise.shape[:1], -math.inf)
    for rows in _chunks(teacher.shape[0], prototypes.shape[0]):
        logits = _teacher_logits(teacher[rows], precise, temperature, potential)
        if potential is not None:
            logits = logits.sub_(logits.logsumexp(1, keepdim=True)).add_(potential)
        mass = torch.logaddexp(mass, logits.logsumexp(0))
    return mass


def loss_and_gradients(call: PrototypeCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.loss_and_gradients`."""
    token_weight, dtype = call.token_weight, call.token_weight.dtype
    grad_student = empty_gradient(call.student, call.student_needs_grad)
    grad_prototypes = empty_gradient(call.student_prototypes, call.prototypes_needs_grad).zero_()
    student_prototypes, teacher_prototypes = call.student_prototypes.to(dtype), call.teacher_prototypes.to(dtype)
    total = token_weight.new_zeros(())
    for rows in _chunks(call.student.shape[0], student_prototypes.shape[0]):
        logits = _teacher_logits(call.teacher[rows], teacher_prototypes, call.teacher_temperature, call.potential)
        target = logits.softmax(1)
        chunk = call.student[rows].to(dtype)
        scores = (chunk @ student_prototypes.T).div_(call.student_temperature)  # [c, K]
        losses = scores.logsumexp(1) - torch.linalg.vecdot(target, scores)
        total += torch.dot(losses, token_weight[rows])
        if not call.needs_grad:
            continue
        grad_scores = scores.softmax(1).sub_(target)
        grad_scores *= (token_weight[rows] / call.student_temperature)[:, None]
        if call.student_needs_grad:
            torch.mm(grad_scores, student_prototypes, out=grad_student[rows])
        if call.prototypes_needs_grad:
            grad_prototypes.addmm_(grad_scores.T, chunk)
    return total, grad_student, grad_prototypes


def _chunks(tokens: int, prototypes: int) -> Iterator[slice]:
    chunk_size = max(1, _MAX_SCORES // prototypes)
    for begin in range(0, tokens, chunk_size):
        yield slice(begin, begin + chunk_size)


def _teacher_logits(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """`[c, K]` logits less the potential, in the dtype of `prototypes`."""
    logits = (teacher.to(prototypes.dtype) @ prototypes.T).div_(temperature)
    return logits if potential is None else logits.sub_(potential)
