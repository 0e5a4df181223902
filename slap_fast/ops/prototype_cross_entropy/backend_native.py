"""Native backend, CPU: matrix products by chunks of tokens, then native passes over cached scores."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import score_chunks
from slap_fast.ops.loss_gradients import empty_gradient
from slap_fast.ops.matrix_product import matrix_product
from slap_fast.ops.prototype_cross_entropy.call import PrototypeCall
from slap_fast.ops.score_chunks import chunk_rows, empty_scores, gradients_in
from slap_fast.ops.tensor_checks import STORAGE, contiguous

# Bytes of a chunk, for the student and for the teacher. Each chunk reads all prototypes and, for the loss, reads and
# writes their whole gradient: small chunks would be bound by memory traffic.
_BUDGET = 1 << 27

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve `dtype` matrices on `device`; None if it can."""
    return score_chunks.rejects(device, dtype)


def sinkhorn_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """See `Backend.sinkhorn_sweep`."""
    count, dtype = prototypes.shape[0], score_chunks.product_dtype(teacher.dtype)
    prototypes = prototypes.to(dtype)
    potential = None if potential is None else contiguous(potential)
    largest = torch.full((count,), -math.inf, dtype=torch.float32, device="cpu")
    total = torch.zeros(count, dtype=torch.float64, device="cpu")
    rows = chunk_rows(teacher.shape[0], count + teacher.shape[1], _BUDGET)
    scores = empty_scores(rows, count)
    for tokens in _chunks(teacher.shape[0], rows):
        chunk = teacher[tokens].to(dtype)
        matrix_product(chunk, prototypes.T, scores[: len(chunk)])
        native.require().sinkhorn_masses(
            scores=scores.data_ptr(),
            rows=len(chunk),
            columns=count,
            stride=scores.stride(0),
            temperature=float(temperature),
            potential=_address(potential),
            column_max=largest.data_ptr(),
            column_sum=total.data_ptr(),
            threads=torch.get_num_threads(),
        )
    mass = largest.double() + total.log()
    return (mass if potential is None else mass + potential).float()


def loss_and_gradients(call: PrototypeCall) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.loss_and_gradients`."""
    student, teacher, dtype = call.student, call.teacher, score_chunks.product_dtype(call.student.dtype)
    grad_student = empty_gradient(student, call.student_needs_grad)
    grad_prototypes = empty_gradient(call.student_prototypes, call.prototypes_needs_grad).zero_()
    student_prototypes, teacher_prototypes = call.student_prototypes.to(dtype), call.teacher_prototypes.to(dtype)
    potential = None if call.potential is None else contiguous(call.potential)
    token_weight = contiguous(call.token_weight)
    count = student_prototypes.shape[0]
    rows = chunk_rows(student.shape[0], count + student.shape[1], _BUDGET)
    scores, teacher_scores = empty_scores(rows, count), empty_scores(rows, count)
    grad_scores = gradients_in(scores, dtype)
    total = 0.0
    for tokens in _chunks(student.shape[0], rows):
        chunk = student[tokens].to(dtype)
        matrix_product(chunk, student_prototypes.T, scores[: len(chunk)])
        matrix_product(teacher[tokens].to(dtype), teacher_prototypes.T, teacher_scores[: len(chunk)])
        total += native.require().prototype_cross_entropy(
            student=scores.data_ptr(),
            teacher=teacher_scores.data_ptr(),
            rows=len(chunk),
            columns=count,
            stride=scores.stride(0),
            student_temperature=float(call.student_temperature),
            teacher_temperature=float(call.teacher_temperature),
            potential=_address(potential),
            token_weight=token_weight[tokens].data_ptr(),
            grad_dtype=STORAGE[dtype] if call.needs_grad else None,
            threads=torch.get_num_threads(),
        )
        if call.student_needs_grad:
            matrix_product(grad_scores[: len(chunk)], student_prototypes, grad_student[tokens])
        if call.prototypes_needs_grad:
            matrix_product(grad_scores[: len(chunk)].T, chunk, grad_prototypes, accumulate=True)
    return torch.tensor(total, dtype=torch.float32, device="cpu"), grad_student, grad_prototypes


def _chunks(tokens: int, rows: int) -> Iterator[slice]:
    for begin in range(0, tokens, rows):
        yield slice(begin, min(begin + rows, tokens))


def _address(potential: Tensor | None) -> int:
    return 0 if potential is None else potential.data_ptr()
