from __future__ import annotations

import torch

from slap_fast.objectives.captioning import captioning
from tests.oracles.linear_cross_entropy import linear_cross_entropy as oracle


def _inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(7, (9,), generator=generator)


def test_the_mean_is_over_the_caption_tokens_that_count():
    hidden, weight, targets = _inputs()
    targets[[0, 5]] = -100
    actual, expected = captioning(hidden, weight, targets), oracle(hidden, weight, targets)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    )


def test_no_caption_token_gives_zero_with_zero_gradients():
    hidden, weight, targets = _inputs()
    loss = captioning(hidden, weight, torch.full_like(targets, -100))
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (hidden, weight)))
