"""Contrastive kernels, and the product and fold kernels that losses share, under Triton's interpreter.

Run by tests/kernels/test_interpreted.py; alone: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/...
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slap_fast.kernels import contrastive as kernels
from slap_fast.kernels import variants
from slap_fast.kernels.contrastive.positives import positives_of
from slap_fast.kernels.scores import blocks, float32_product, partial_sums
from slap_fast.kernels.scores.tiles import TileShape
from slap_fast.ops import contrastive_loss
from slap_fast.ops.contrastive import backend_torch, backend_triton
from slap_fast.ops.contrastive.call import BackwardInputs, ContrastiveCall
from tests.ops._loss_checks import assert_as_accurate_as_plain, unit_rows
from tests.oracles.contrastive_loss import contrastive_loss as oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of log(0)

DTYPES = [torch.float32, torch.float16]
KINDS = ["infonce", "sigmoid"]


def _rows(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    rows = torch.randn(count, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1).to(dtype)


CASES = [
    ("infonce", False, 37, torch.float32, "128x128"),
    ("infonce", False, -100, torch.float32, "128x128"),
    ("infonce", True, 0, torch.float16, "128x128"),
    ("infonce", False, 260, torch.float32, "128x256"),
    ("infonce", True, 0, torch.float16, "cublas"),
    ("sigmoid", False, 100, torch.float16, "128x128"),
    ("sigmoid", True, 0, torch.float32, "128x128"),
    ("sigmoid", True, 0, torch.float32, "128x256"),
    ("sigmoid", False, -3, torch.float16, "cublas"),
]


@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
@pytest.mark.parametrize(("kind", "by_ids", "offset", "dtype", "tile"), CASES)
def test_sums_and_gradients_of_a_rectangle_match_float64(
    kind: str, by_ids: bool, offset: int, dtype: torch.dtype, tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles with negatives only, with some positives, and at the edge; several blocks in both directions."""
    if tile == "128x256":
        monkeypatch.setattr(blocks, "TILE", 256)
    if tile == "cublas":  # blocks of stored similarities within those of the statistics
        monkeypatch.setattr(kernels, "_STORED_AREA", 128 * 128)
        monkeypatch.setattr(partial_sums, "AREA", 128 * 256)
    generator = torch.Generator().manual_seed(0)
    audio, text = _rows(139, 1, dtype), _rows(300, 2, dtype)
    scale, bias = torch.tensor([50.0]), torch.tensor(-4.0) if kind == "sigmoid" else None
    audio_ids, text_ids = (torch.randint(-30, 30, (n,), generator=generator) for n in (139, 300))
    text_ids[0 if tile == "128x256" else 128 : 256] += 60  # a tile without a positive
    ids = (audio_ids, text_ids) if by_ids else (None, None)  # some rows have no positive
    weights = [torch.rand(n, generator=generator) / 400 for n in (139, 300, 139)]
    if kind == "sigmoid":
        weights[1:] = [torch.zeros(300), torch.zeros(139)]

    def run(backend: Any, wide: bool = False) -> list[Tensor]:
        inputs = tuple(x.double() if wide else x for x in (audio, text, scale))
        own_bias = bias.double() if wide and bias is not None else bias
        call = ContrastiveCall._make((*inputs, own_bias, *ids, offset, kind, 0))
        sums = backend.forward(call)
        grads_in = [x.double() if wide else x for x in weights]
        grads = backend.backward(call, BackwardInputs(*(sums[i] for i in (0, 1, 3, 4)), *grads_in))
        assert [grad.shape for grad in grads[:3]] == [x.shape for x in inputs]
        return [*sums, *(grads if bias is not None else grads[:3])]

    with variants.use(contrastive_tile=tile):
        actual = run(backend_triton)
    peer, exact = run(backend_torch), run(backend_torch, wide=True)
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


def test_loss_and_gradients_of_one_clip_are_zero() -> None:
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
    for backend in (backend_triton, backend_torch):
        call = ContrastiveCall(audio, text, scale, bias, None, None, 0, kind, 0)
        sums = backend.forward(call)
        weights = torch.ones(rows), torch.ones(columns), torch.ones(rows)
        inputs = BackwardInputs(sums[0], sums[1], sums[3], sums[4], *weights)
        results.append([*sums, *backend.backward(call, inputs)])
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


def test_strided_inputs_and_chunks_of_any_size() -> None:
    audio, text = torch.randn(70, 2, 16)[:, 0], torch.randn(16, 70).T
    leaves = [x.requires_grad_() for x in (audio, text, torch.tensor(3.0))]
    expected = torch.autograd.grad(contrastive_loss(*leaves, backend="torch").loss, leaves)
    actual = torch.autograd.grad(contrastive_loss(*leaves, chunk_size=33, backend="triton").loss, leaves)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("highest", [0, 4, 5000])
def test_a_tile_is_flagged_if_it_has_a_positive(highest: int) -> None:
    tile, generator = TileShape(64, 32, 16, 4, 1, 4), torch.Generator().manual_seed(0)
    audio_ids, text_ids = (torch.randint(0, highest + 1, (n,), generator=generator) for n in (139, 300))
    found = positives_of(139, 300, (audio_ids, text_ids), 0, tile, audio_ids.device)
    positive = audio_ids[:, None] == text_ids
    assert torch.equal(found.audio_keys[:139, None] == found.text_keys[:300], positive)
    assert torch.equal(found.counts, positive.sum(1, dtype=torch.int32))
    padded = F.pad(positive, (0, 20, 0, 53)).view(3, 64, 10, 32)
    assert torch.equal(found.flags.bool(), padded.any(3).any(1))


@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 1, 1), (130, 32, 40), (128, 77, 256), (200, 64, 130), (130, 4100, 40)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_float32_product_reads_nothing_beyond_the_corner(
    rows: int, depth: int, columns: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    storage = torch.full((4352, 256) if transposed else (256, 4352), torch.nan)
    a = (storage.T if transposed else storage)[:rows, :depth]
    a.copy_(torch.randn(rows, depth, generator=generator))
    b = torch.randn(depth, columns, generator=generator)
    out = torch.full((rows, columns), torch.nan)
    float32_product.store(out, a, b)
    once = out.clone()
    float32_product.store(out, a, b, add=True)
    assert torch.equal(out, 2 * once)
    exact = a.double() @ b.double()
    error, peer_error = ((x.double() - exact).norm() for x in (once, a @ b))
    assert error <= 2 * peer_error + torch.finfo(torch.float32).eps * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tie_counts_as_wrong_and_without_negatives_their_similarity_is_zero(kind: str) -> None:
    audio, text = _rows(1, 1, torch.float32).repeat(70, 1), _rows(1, 2, torch.float32).repeat(70, 1)
    bias = torch.tensor(-1.0) if kind == "sigmoid" else None
    for ids, accuracy in ((None, 0.0), (torch.arange(70) % 2, 0.0), (torch.zeros(70, dtype=torch.int64), 1.0)):
        output = contrastive_loss(audio, text, torch.tensor(9.0), bias, kind=kind, ids=ids, backend="triton")
        assert output.accuracy == accuracy
        if ids is not None and accuracy == 1.0:
            assert output.negative_similarity == 0.0


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("flagged", [False, True])
def test_many_parts_are_folded_in_shares(flagged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_sums, "_MAX_TILES", 40)
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(2, 3, 170, 128, generator=generator)
    flags = torch.randint(0, 2, (2, 170), generator=generator, dtype=torch.int8).T
    there = flags.bool().repeat_interleave(64, 1) if flagged else torch.ones(170, 128, dtype=torch.bool)
    sums = partial_sums.running(2, 3, 80, parts.device)
    options: dict[str, Any] = {"flags": flags, "flagged": 64} if flagged else {}
    for _ in range(2):  # the second adds to the first
        partial_sums.fold(parts, sums, 170, 10, 70, pitch=128, weighted=True, **options)
    largest, total, third = parts.double().masked_fill(~there, -torch.inf).transpose(0, 1)
    most = largest.amax(1)
    weights = 2 * (largest - most[:, None]).exp()
    exact = torch.stack([most, *((weights * x.nan_to_num(neginf=0.0)).sum(1) for x in (total, third))], 1)
    torch.testing.assert_close(sums[..., 10:].double(), exact[..., :70], rtol=1e-5, atol=1e-4)
    assert torch.equal(sums[..., :10], partial_sums.running(2, 3, 10, parts.device))
