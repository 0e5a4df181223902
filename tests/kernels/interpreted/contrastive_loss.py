"""Run by tests/kernels/test_interpreted.py; alone: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/..."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops import contrastive_loss
from slap_fast.ops.backends import contrastive_torch, contrastive_triton
from tests.ops._loss_checks import assert_as_accurate_as_plain, unit_rows
from tests.oracles.contrastive_loss import contrastive_loss as oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy says log(0) aloud

DTYPES = [torch.float32, torch.float16]
KINDS = ["infonce", "sigmoid"]


def _rows(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    rows = torch.randn(count, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1).to(dtype)


CASES = [
    ("infonce", False, 37, torch.float32),
    ("infonce", False, -100, torch.float32),
    ("infonce", True, 0, torch.float16),
    ("sigmoid", False, 100, torch.float16),
    ("sigmoid", True, 0, torch.float32),
]


@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
@pytest.mark.parametrize(("kind", "by_ids", "offset", "dtype"), CASES)
def test_every_sum_and_gradient_of_a_rectangle_is_that_of_float64(
    kind: str, by_ids: bool, offset: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    audio, text = _rows(139, 1, dtype), _rows(210, 2, dtype)
    scale, bias = torch.tensor([50.0]), torch.tensor(-4.0) if kind == "sigmoid" else None
    audio_ids, text_ids = (torch.randint(-30, 30, (n,), generator=generator) for n in (139, 210))
    ids = (audio_ids, text_ids) if by_ids else (None, None)  # some rows have no positive
    weights = [torch.rand(n, generator=generator) / 400 for n in (139, 210, 139)]
    if kind == "sigmoid":
        weights[1:] = [torch.zeros(210), torch.zeros(139)]

    def run(backend: Any, wide: bool = False) -> list[Tensor]:
        inputs = [x.double() if wide else x for x in (audio, text, scale)]
        own_bias = bias.double() if wide and bias is not None else bias
        sums = backend.forward(*inputs, own_bias, *ids, offset, kind, 0)
        grads_in = [x.double() if wide else x for x in weights]
        chosen = [sums[i] for i in (0, 1, 3, 4)]
        grads = backend.backward(*grads_in, *chosen, *inputs, own_bias, *ids, offset, kind, 0)
        assert [grad.shape for grad in grads[:3]] == [x.shape for x in inputs]
        return [*sums, *(grads if bias is not None else grads[:3])]

    actual, peer, exact = run(contrastive_triton), run(contrastive_torch), run(contrastive_torch, wide=True)
    for index, (got, other, wanted) in enumerate(zip(actual, peer, exact, strict=True)):
        assert got.dtype == other.dtype
        known = wanted.isfinite()
        assert torch.equal(got.isfinite(), known), index
        assert torch.equal(got[~known], other[~known]), index
        error, peer_error = ((x.double() - wanted)[known].norm() for x in (got, other))
        assert error <= 2 * peer_error + torch.finfo(got.dtype).eps * wanted[known].norm(), (index, error, peer_error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_err_at_most_twice_as_much_as_plain(kind: str, dtype: torch.dtype) -> None:
    tensors = [unit_rows(70, 24, seed=1, dtype=dtype), unit_rows(70, 24, seed=2, dtype=dtype), torch.tensor(100.0)]
    if kind == "sigmoid":
        tensors.append(torch.tensor(-10.0))
    ids = torch.arange(70) % 50

    def ours(*tensors: Tensor) -> Tensor:
        return contrastive_loss(*tensors, kind=kind, ids=ids, backend="triton").loss

    def plain(*tensors: Tensor) -> Tensor:
        tensors = tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
        return oracle(*tensors, kind=kind, ids=ids).loss

    assert_as_accurate_as_plain(ours, plain, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_oracle(kind: str) -> None:
    audio, text = _rows(70, 1, torch.float64), _rows(70, 2, torch.float64)
    text[:40] += audio[:40]
    bias = torch.tensor(-10.0) if kind == "sigmoid" else None
    expected = oracle(audio, text, torch.tensor(10.0), bias, kind=kind)
    actual = contrastive_loss(audio.float(), text.float(), torch.tensor(10.0), bias, kind=kind, backend="triton")
    for name, wanted in expected._asdict().items():
        torch.testing.assert_close(getattr(actual, name).double(), wanted.double(), rtol=1e-5, atol=1e-6)


def test_one_clip_has_no_loss_and_no_gradient() -> None:
    tensors = [_rows(1, 1, torch.float32), _rows(1, 2, torch.float32), torch.tensor(100.0)]
    leaves = [x.requires_grad_() for x in tensors]
    loss = contrastive_loss(*leaves, backend="triton").loss
    assert loss == 0.0
    for grad in torch.autograd.grad(loss, leaves):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("scale", [100.0, 0.0, -20.0])
def test_identical_rows_and_scales_of_any_sign(scale: float) -> None:
    audio, text = _rows(1, 1, torch.float32).repeat(66, 1), _rows(66, 2, torch.float32)
    leaves = [x.requires_grad_() for x in (audio, text, torch.tensor(scale))]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    loss, expected = contrastive_loss(*leaves, backend="triton").loss, oracle(*wide).loss
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for grad, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (0, 0)])
def test_without_rows_or_columns(rows: int, columns: int, kind: str) -> None:
    audio, text, scale = torch.randn(rows, 8), torch.randn(columns, 8), torch.tensor(2.0)
    bias = torch.tensor(1.0) if kind == "sigmoid" else None
    results = []
    for backend in (contrastive_triton, contrastive_torch):
        sums = backend.forward(audio, text, scale, bias, None, None, 0, kind, 0)
        weights = torch.ones(rows), torch.ones(columns), torch.ones(rows)
        chosen = [sums[i] for i in (0, 1, 3, 4)]
        results.append([*sums, *backend.backward(*weights, *chosen, audio, text, scale, bias, None, None, 0, kind, 0)])
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


def test_strided_inputs_and_chunks_of_any_size() -> None:
    audio, text = torch.randn(70, 2, 16)[:, 0], torch.randn(16, 70).T
    leaves = [x.requires_grad_() for x in (audio, text, torch.tensor(3.0))]
    expected = torch.autograd.grad(contrastive_loss(*leaves, backend="torch").loss, leaves)
    actual = torch.autograd.grad(contrastive_loss(*leaves, chunk_size=33, backend="triton").loss, leaves)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
