"""Kernels of `linear_cross_entropy` under Triton's interpreter.

Run by tests/kernels/test_interpreted.py; alone: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/...
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast.kernels import variants
from slap_fast.kernels.scores import blocks
from slap_fast.ops import linear_cross_entropy
from slap_fast.ops.linear_cross_entropy import backend_torch, backend_triton
from slap_fast.ops.linear_cross_entropy.call import LinearCrossEntropyCall
from tests.ops._loss_checks import assert_as_accurate_as_plain
from tests.oracles.linear_cross_entropy import linear_cross_entropy as oracle


def _case(tokens: int, words: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(words, width, generator=generator, dtype=torch.float64)
    target = torch.randint(0, words, (tokens,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), target


@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
@pytest.mark.parametrize(
    ("label_smoothing", "z_loss", "dtype", "tile"),
    [
        (0.0, 0.0, torch.float32, "128x128"),
        (0.0, 0.0, torch.float16, "128x128"),
        (0.1, 1e-2, torch.float32, "128x128"),
        (0.1, 1e-2, torch.float16, "128x256"),
    ],
)
def test_loss_and_gradients_err_at_most_twice_as_much_as_plain(
    label_smoothing: float, z_loss: float, dtype: torch.dtype, tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tile == "128x256":
        monkeypatch.setattr(blocks, "TILE", 256)
    hidden, weight, target = _case(139, 210, 70, dtype)
    target[::7] = -100

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, weight, target, label_smoothing=label_smoothing, z_loss=z_loss, backend="triton"
        )

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return oracle(hidden, weight, target, label_smoothing=label_smoothing, z_loss=z_loss)

    with variants.use(caption_tile=tile):
        assert_as_accurate_as_plain(ours, plain, [hidden, weight])


def test_only_needed_gradients_are_computed_and_any_strides_work() -> None:
    hidden, weight, target = _case(2 * 40, 140, 32, torch.float32)
    hidden, target = hidden.T.contiguous().T[::2], target[::2]
    expected = backend_torch.loss_and_gradients(
        LinearCrossEntropyCall(hidden, weight, target, -100, 0.0, 0.0, True, True)
    )
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        actual = backend_triton.loss_and_gradients(
            LinearCrossEntropyCall(hidden, weight, target, -100, 0.0, 0.0, *needs)
        )
        for got, wanted, needed in zip(actual, expected, (True, *needs), strict=True):
            torch.testing.assert_close(got, wanted if needed else torch.empty(0), rtol=1e-4, atol=1e-5)


def test_an_ignored_token_changes_nothing_and_an_invalid_target_gives_nan() -> None:
    hidden, weight, target = _case(20, 30, 16, torch.float16)
    target[3], hidden[3] = 7, torch.nan  # 7 is ignore_index
    call = LinearCrossEntropyCall(hidden, weight, target, 7, 0.0, 0.0, True, True)
    ours, expected = (x.loss_and_gradients(call) for x in (backend_triton, backend_torch))
    for got, wanted in zip(ours, expected, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    for wrong in (30, -1, 2**40):
        target[5] = wrong
        total, grad_hidden, grad_weight = backend_triton.loss_and_gradients(
            LinearCrossEntropyCall(hidden, weight, target, 7, 0.1, 0.0, True, True)
        )
        assert all(x.isnan().all() for x in (total, grad_hidden[5], grad_weight))
        alone = backend_triton.loss_and_gradients(
            LinearCrossEntropyCall(hidden[:5], weight, target[:5], 7, 0.1, 0.0, True, False)
        )
        assert torch.equal(grad_hidden[:5], alone[1])


def test_the_loss_of_a_certain_token_is_within_rounding_and_not_negative() -> None:
    _, weight, target = _case(7, 210, 70, torch.float32)
    hidden = weight[target]  # logits of about 70; the target's is the largest by about 50
    for row, word in zip(hidden, target, strict=True):
        total, *_ = backend_triton.loss_and_gradients(
            LinearCrossEntropyCall(row[None], weight, word[None], -100, 0.0, 0.0, False, False)
        )
        assert 0.0 <= total <= 4 * torch.finfo(torch.float32).eps * row.norm() ** 2


@pytest.mark.parametrize("tokens", [0, 3])
def test_loss_and_gradients_are_zero_if_no_token_counts(tokens: int) -> None:
    hidden, weight = torch.randn(tokens, 8), torch.randn(5, 8)
    ignored = torch.full((tokens,), -100)
    results = backend_triton.loss_and_gradients(
        LinearCrossEntropyCall(hidden, weight, ignored, -100, 0.0, 0.0, True, True)
    )
    for got, shape in zip(results, ((), hidden.shape, weight.shape), strict=True):
        assert torch.equal(got, torch.zeros(shape))
