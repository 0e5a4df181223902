from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.ops.contrastive import contrastive_loss
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy
from slap_fast.training.losses import mean_over_tokens, teacher_agreement, unit_rows, usage_entropy
from slap_fast.training.model import PretrainingModel
from tests.models.builders import TINY
from tests.oracles.contrastive_loss import contrastive_loss as contrastive_oracle
from tests.oracles.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy_oracle
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as prototype_cross_entropy_oracle

LENGTHS = [4, 1, 0, 6]
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.06}


def _embeddings(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.logspace(-3, 3, 6, dtype=torch.float64)[:, None]
    audio, text = torch.randn(2, 6, 8, generator=generator, dtype=torch.float64) * lengths
    return audio.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()


def _unit(x):
    return x / x.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_contrastive_loss_compares_embeddings_of_any_length_by_angle_and_clips_by_id(kind):
    audio, text = _embeddings()
    scale = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True) if kind == "sigmoid" else None
    clip_ids = torch.tensor([0, 1, 2, 1, 3, 4])
    actual = contrastive_loss(unit_rows(audio), unit_rows(text), scale, bias, kind=kind, ids=clip_ids)
    expected = contrastive_oracle(_unit(audio), _unit(text), scale, bias, kind=kind, ids=clip_ids)
    torch.testing.assert_close(tuple(actual), tuple(expected))
    torch.testing.assert_close(
        torch.autograd.grad(actual.loss, (audio, text, scale)), torch.autograd.grad(expected.loss, (audio, text, scale))
    )


def test_the_model_compares_embeddings_of_any_length_by_angle_and_clips_by_id():
    model = PretrainingModel(TINY, ObjectivesConfig())
    audio, text = _embeddings()
    scale = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    clip_ids = torch.tensor([0, 1, 2, 1, 3, 4])
    actual = model.contrastive(audio, text, scale, clip_ids, None)
    expected = contrastive_oracle(_unit(audio), _unit(text), scale, ids=clip_ids)
    torch.testing.assert_close(tuple(actual), tuple(expected))
    torch.testing.assert_close(
        torch.autograd.grad(actual.loss, (audio, text, scale)), torch.autograd.grad(expected.loss, (audio, text, scale))
    )


def test_bfloat16_embeddings_are_normalized_and_compared_in_float32():
    audio, text = _embeddings(torch.bfloat16)
    scale, clip_ids = torch.tensor([100.0]), torch.arange(6)
    actual = contrastive_loss(unit_rows(audio), unit_rows(text), scale, ids=clip_ids)
    expected = contrastive_oracle(_unit(audio.double()), _unit(text.double()), scale.double(), ids=clip_ids)
    torch.testing.assert_close(actual.loss, expected.loss.float())
    assert torch.autograd.grad(actual.loss, audio)[0].dtype == torch.bfloat16


def test_a_zero_embedding_gives_finite_gradients():
    audio, text = _embeddings()
    with torch.no_grad():
        audio[2] = 0.0
    scale = torch.tensor([10.0], dtype=torch.float64)
    loss = contrastive_loss(unit_rows(audio), unit_rows(text), scale, ids=torch.arange(6)).loss
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (audio, text)))


def _captions():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(7, (9,), generator=generator)


def _caption_loss(hidden, weight, targets):
    return mean_over_tokens(linear_cross_entropy(hidden, weight, targets, reduction="sum"), targets)


def test_the_caption_loss_is_the_mean_over_the_tokens_that_are_not_ignored():
    hidden, weight, targets = _captions()
    targets[[0, 5]] = -100
    actual, expected = _caption_loss(hidden, weight, targets), linear_cross_entropy_oracle(hidden, weight, targets)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    )


def test_no_caption_token_gives_zero_with_zero_gradients():
    hidden, weight, targets = _captions()
    loss = _caption_loss(hidden, weight, torch.full_like(targets, -100))
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (hidden, weight)))


def _masked_features(lengths):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(lengths)
    shapes = [(tokens, 8), (tokens, 8), (5, 8), (5, 8)]
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [F.normalize(x, dim=-1).requires_grad_() for x in rows]


def _self_distillation(tensors, lengths, **options):
    cu_seqlens = PackedLayout.from_lengths(lengths).cu_seqlens
    return prototype_cross_entropy(*tensors, cu_seqlens=cu_seqlens, **TEMPERATURES, **options)


@pytest.mark.parametrize("iterations", [1, 3])
def test_self_distillation_weighs_a_long_clip_as_much_as_a_short_one(iterations):
    tensors = _masked_features(LENGTHS)
    actual = _self_distillation(tensors, LENGTHS, sinkhorn_iterations=iterations)
    expected = prototype_cross_entropy_oracle(*tensors, lengths=LENGTHS, sinkhorn_iterations=iterations, **TEMPERATURES)
    torch.testing.assert_close(actual, expected)
    students = tensors[0], tensors[2]
    torch.testing.assert_close(
        torch.autograd.grad(actual, students, retain_graph=True), torch.autograd.grad(expected, students)
    )


def test_self_distillation_gives_the_teacher_no_gradient():
    tensors = _masked_features(LENGTHS)
    _self_distillation(tensors, LENGTHS).backward()
    assert tensors[0].grad.any()
    assert tensors[2].grad.any()
    assert tensors[1].grad is None
    assert tensors[3].grad is None


def test_self_distillation_without_masked_tokens_is_zero():
    tensors = _masked_features([0, 0])
    loss = _self_distillation(tensors, [0, 0])
    loss.backward()
    assert loss == 0
    assert not tensors[2].grad.any()


def test_teacher_agreement_is_a_mean_over_clips_of_cosines():
    student, teacher = (x.detach() for x in _masked_features(LENGTHS)[:2])
    cosines = (student * teacher).sum(1).split(LENGTHS)
    expected = sum(part.mean() for part in cosines if len(part)) / len(LENGTHS)
    layout = PackedLayout.from_lengths(LENGTHS)
    torch.testing.assert_close(teacher_agreement(student, teacher, layout), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(teacher_agreement(student, teacher, layout), expected)
    nothing = PackedLayout.from_lengths([0, 0])
    assert teacher_agreement(student[:0], teacher[:0], nothing) == 0.0


def test_usage_entropy_tells_even_use_of_prototypes_from_collapse():
    prototypes = torch.eye(8, dtype=torch.float64)
    even = usage_entropy(torch.cat([prototypes, prototypes]), prototypes, teacher_temperature=0.01)
    torch.testing.assert_close(even, torch.tensor(8.0).double().log())
    assert usage_entropy(prototypes[:1].expand(16, 8), prototypes, teacher_temperature=0.01) < 1e-6
    assert usage_entropy(prototypes[:0], prototypes, teacher_temperature=0.01) == 0.0
