from __future__ import annotations

import pytest
import torch

from slap_fast.ops import loss_gradients

SHAPES = [(0, 5), (1, 5), (16, 3), (37, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scaled_gradient_is_rounded_once_and_the_saved_one_is_unchanged(shape, dtype):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-6
    saved, factor = gradient.clone(), torch.tensor(3e3)
    scaled = torch.ops.slap_fast.scale_gradient(gradient, factor, dtype)
    assert torch.equal(scaled, (gradient * factor).to(dtype))
    assert torch.equal(gradient, saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.slap_fast.scale_gradient, (torch.randn(18, 5), torch.tensor(2.0), dtype))


def test_gradients_are_kept_in_float32_or_float64_and_only_if_needed():
    for dtype, kept in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        x = torch.zeros(3, 2, dtype=dtype)
        assert loss_gradients.empty_gradient(x, True).dtype == kept
        assert loss_gradients.empty_gradient(x, True).shape == (3, 2)
        assert loss_gradients.empty_gradient(x, False).shape == (0,)
