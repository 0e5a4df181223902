from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slap_fast.objectives.self_distillation import self_distillation, teacher_agreement, usage_entropy
from slap_fast.ops.packed import PackedLayout
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as oracle

LENGTHS = [4, 1, 0, 6]
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.06}


def _inputs(lengths):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    shapes = [(tokens, 8), (tokens, 8), (5, 8), (5, 8)]
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [F.normalize(x, dim=-1).requires_grad_() for x in rows]


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_long_clip_weighs_as_much_as_a_short_one(iterations):
    tensors = _inputs(LENGTHS)
    layout = PackedLayout.from_lengths(LENGTHS)
    actual = self_distillation(*tensors, layout, sinkhorn_iterations=iterations, **TEMPERATURES)
    expected = oracle(*tensors, lengths=LENGTHS, sinkhorn_iterations=iterations, **TEMPERATURES)
    torch.testing.assert_close(actual, expected)
    students = tensors[0], tensors[2]
    torch.testing.assert_close(
        torch.autograd.grad(actual, students, retain_graph=True), torch.autograd.grad(expected, students)
    )


def test_nothing_is_learnt_on_the_teacher_side():
    tensors = _inputs(LENGTHS)
    loss = self_distillation(*tensors, PackedLayout.from_lengths(LENGTHS), **TEMPERATURES)
    loss.backward()
    assert tensors[0].grad.any()
    assert tensors[2].grad.any()
    assert tensors[1].grad is None
    assert tensors[3].grad is None


def test_a_batch_without_masked_tokens_gives_zero():
    tensors = _inputs([0, 0])
    loss = self_distillation(*tensors, PackedLayout.from_lengths([0, 0]), **TEMPERATURES)
    loss.backward()
    assert loss == 0
    assert not tensors[2].grad.any()


def test_agreement_is_a_mean_over_clips_of_cosines():
    student, teacher = (x.detach() for x in _inputs(LENGTHS)[:2])
    cosines = (student * teacher).sum(1).split(LENGTHS)
    expected = sum(part.mean() for part in cosines if len(part)) / len(LENGTHS)
    layout = PackedLayout.from_lengths(LENGTHS)
    torch.testing.assert_close(teacher_agreement(student, teacher, layout), expected)
    nothing = PackedLayout.from_lengths([0, 0])
    assert teacher_agreement(student[:0], teacher[:0], nothing) == 0.0


def test_entropy_tells_even_use_of_prototypes_from_collapse():
    prototypes = torch.eye(8, dtype=torch.float64)
    even = usage_entropy(torch.cat([prototypes, prototypes]), prototypes, teacher_temperature=0.01)
    torch.testing.assert_close(even, torch.tensor(8.0).double().log())
    assert usage_entropy(prototypes[:1].expand(16, 8), prototypes, teacher_temperature=0.01) < 1e-6
    assert usage_entropy(prototypes[:0], prototypes, teacher_temperature=0.01) == 0.0
