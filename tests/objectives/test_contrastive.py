from __future__ import annotations

import pytest
import torch

from slap_fast.objectives.contrastive import contrastive
from tests.oracles.contrastive_loss import contrastive_loss as oracle


def _embeddings(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.logspace(-3, 3, 6, dtype=torch.float64)[:, None]
    audio, text = torch.randn(2, 6, 8, generator=generator, dtype=torch.float64) * lengths
    return audio.to(dtype).requires_grad_(), text.to(dtype).requires_grad_()


def _unit(x):
    return x / x.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_embeddings_of_any_length_are_compared_by_angle_and_clips_by_id(kind):
    audio, text = _embeddings()
    scale = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True) if kind == "sigmoid" else None
    clip_ids = torch.tensor([0, 1, 2, 1, 3, 4])
    actual = contrastive(audio, text, scale, clip_ids, kind=kind, logit_bias=bias)
    expected = oracle(_unit(audio), _unit(text), scale, bias, kind=kind, ids=clip_ids)
    torch.testing.assert_close(tuple(actual), tuple(expected))
    torch.testing.assert_close(
        torch.autograd.grad(actual.loss, (audio, text, scale)), torch.autograd.grad(expected.loss, (audio, text, scale))
    )


def test_bfloat16_embeddings_are_normalised_and_compared_in_float32():
    audio, text = _embeddings(torch.bfloat16)
    scale, clip_ids = torch.tensor([100.0]), torch.arange(6)
    actual = contrastive(audio, text, scale, clip_ids)
    expected = oracle(_unit(audio.double()), _unit(text.double()), scale.double(), ids=clip_ids)
    torch.testing.assert_close(actual.loss, expected.loss.float())
    assert torch.autograd.grad(actual.loss, audio)[0].dtype == torch.bfloat16


def test_a_zero_embedding_gives_finite_gradients():
    audio, text = _embeddings()
    with torch.no_grad():
        audio[2] = 0.0
    loss = contrastive(audio, text, torch.tensor([10.0], dtype=torch.float64), torch.arange(6)).loss
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (audio, text)))
