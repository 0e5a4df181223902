"""Prototype loss on CPUs: products by chunks of tokens, and native passes over their scores while they are in cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import score_chunks
from slap_fast.ops.loss_gradients import empty_gradient
from slap_fast.ops.matrix_product import matrix_product
from slap_fast.ops.score_chunks import chunk_rows, empty_scores, gradients_in
from slap_fast.ops.tensor_checks import STORAGE, contiguous

# Bytes of a chunk of either side. Each chunk reads all prototypes anew, and the last sweep reads and writes their whole
# gradient: few tokens at a time would be all memory traffic.
_BUDGET = 1 << 27


unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve `dtype` matrices on `device`, None if it can."""
    return score_chunks.rejects(device, dtype)


def _chunks(tokens: int, rows: int) -> Iterator[slice]:
    for begin in range(0, tokens, rows):
        yield slice(begin, min(begin + rows, tokens))


def _address(potential: Tensor | None) -> int:
    return 0 if potential is None else potential.data_ptr()


def sinkhorn_sweep(teacher: Tensor, prototypes: Tensor, temperature: Tensor, potential: Tensor | None) -> Tensor:
    """`[K]` log of each prototype's mass over these tokens, once they are normalised under `potential`."""
    count, dtype = prototypes.shape[0], score_chunks.product_dtype(teacher.dtype)
    precise = prototypes.to(dtype)
    potential = None if potential is None else contiguous(potential)
    largest = torch.full((count,), -math.inf, dtype=torch.float32, device="cpu")
    total = torch.zeros(count, dtype=torch.float64, device="cpu")
    rows = chunk_rows(teacher.shape[0], count + teacher.shape[1], _BUDGET)
    scores = empty_scores(rows, count)
    for tokens in _chunks(teacher.shape[0], rows):
        chunk = teacher[tokens].to(dtype)
        matrix_product(chunk, precise.T, scores[: len(chunk)])
        native.require().sinkhorn_masses(
            scores=scores.data_ptr(),
            rows=len(chunk),
            columns=count,
            stride=scores.stride(0),
            temperature=float(temperature),
            potential=_address(potential),
            largest=largest.data_ptr(),
            sum=total.data_ptr(),
            threads=torch.get_num_threads(),
        )
    mass = largest.double() + total.log()
    return (mass if potential is None else mass + potential).float()


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
    count, dtype = student_prototypes.shape[0], score_chunks.product_dtype(student.dtype)
    grad_student = empty_gradient(student, student_needs_grad)
    grad_prototypes = empty_gradient(student_prototypes, prototypes_needs_grad).zero_()
    student_prototypes, teacher_prototypes = student_prototypes.to(dtype), teacher_prototypes.to(dtype)
    potential, token_weight = None if potential is None else contiguous(potential), contiguous(token_weight)
    rows = chunk_rows(student.shape[0], count + student.shape[1], _BUDGET)
    scores, targets = empty_scores(rows, count), empty_scores(rows, count)
    grad_scores = gradients_in(scores, dtype)
    needs_grad = student_needs_grad or prototypes_needs_grad
    total = 0.0
    for tokens in _chunks(student.shape[0], rows):
        chunk = student[tokens].to(dtype)
        matrix_product(chunk, student_prototypes.T, scores[: len(chunk)])
        matrix_product(teacher[tokens].to(dtype), teacher_prototypes.T, targets[: len(chunk)])
        total += native.require().prototype_cross_entropy(
            student=scores.data_ptr(),
            teacher=targets.data_ptr(),
            rows=len(chunk),
            columns=count,
            stride=scores.stride(0),
            student_temperature=float(student_temperature),
            teacher_temperature=float(teacher_temperature),
            potential=_address(potential),
            token_weight=token_weight[tokens].data_ptr(),
            gradients=STORAGE[dtype] if needs_grad else None,
            threads=torch.get_num_threads(),
        )
        if student_needs_grad:
            matrix_product(grad_scores[: len(chunk)], student_prototypes, grad_student[tokens])
        if prototypes_needs_grad:
            matrix_product(grad_scores[: len(chunk)].T, chunk, grad_prototypes, accumulate=True)
    return torch.tensor(total, dtype=torch.float32, device="cpu"), grad_student, grad_prototypes
