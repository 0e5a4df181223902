from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slap_fast.ops.contrastive import backend_native, backend_torch, contrastive_loss
from slap_fast.ops.contrastive.call import BackwardInputs, ContrastiveCall
from tests.ops._native import instruction_sets, native_code, needs_native

pytestmark = needs_native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["infonce", "sigmoid"]
# Rows, columns, offset: empty, around the width of a vector, and more than one tile.
SHAPES = [(0, 3, 0), (3, 0, 0), (1, 1, 0), (2, 2, 0), (33, 35, 2), (61, 1555, 1500), (1601, 50, -20)]
OUTPUTS = ["row_loss", "column_loss", "row_positive", "row_stats", "column_best", "audio", "text", "scale", "bias"]


def _embeddings(rows: int, columns: int, offset: int, *, width: int = 37, alike: float = 0.0) -> tuple[Tensor, Tensor]:
    """Unit rows in float32, pairs closer than others; a larger `alike` narrows the cone that holds all rows."""
    generator = torch.Generator().manual_seed(rows + 7 * columns)
    audio = torch.randn(rows, width, generator=generator) + alike
    text = torch.randn(columns, width, generator=generator) + alike
    for row in range(max(0, -offset), min(rows, columns - offset)):
        text[row + offset] += audio[row]
    return F.normalize(audio, dim=-1), F.normalize(text, dim=-1)


def _both_passes(module, call: ContrastiveCall, grads: list[Tensor]) -> list[Tensor]:
    row_loss, column_loss, row_positive, row_stats, column_best = module.forward(call)
    inputs = BackwardInputs._make((row_loss, column_loss, row_stats, column_best, *grads))
    return [row_loss, column_loss, row_positive, row_stats, column_best, *module.backward(call, inputs)]


def _assert_as_accurate(isa: str, call: ContrastiveCall) -> None:
    """Each output errs at most twice as much as the torch backend's, plus the rounding of a sum."""
    rows, columns = call.audio.shape[0], call.text.shape[0]
    generator = torch.Generator().manual_seed(3)
    grads = [2.0 ** torch.randint(-1, 2, (n,), generator=generator) / max(n, 1) for n in (rows, columns, rows)]
    grads[2] = -grads[2]
    with native_code(isa=isa):
        actual = _both_passes(backend_native, call, grads)
    plain = _both_passes(backend_torch, call, grads)
    doubles = ContrastiveCall._make(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in call)
    exact = _both_passes(backend_torch, doubles, [grad.double() for grad in grads])
    # The gradients of the scalars are small differences of sums this large.
    summed = dict.fromkeys(("scale", "bias"), sum(grad.abs().sum() for grad in grads))
    for name, got, peer, wanted in zip(OUTPUTS, actual, plain, exact, strict=True):
        finite = wanted.isfinite()
        assert torch.equal(got.isfinite(), finite), name
        error, peer_error = ((x.double() - wanted)[finite].norm() for x in (got, peer))
        rounding = 4 * torch.finfo(torch.float32).eps * (wanted[finite].norm() + summed.get(name, 0.0))
        assert error <= 2 * peer_error + rounding, f"{name}: error {error:.3g}, plain {peer_error:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_gradients_are_as_accurate_as_the_torch_backend(isa, dtype, kind):
    for (rows, columns, offset), many in itertools.product(SHAPES, (None, 40, 2)):
        ids: list[Tensor | None] = [None, None]
        if many is not None:
            generator = torch.Generator().manual_seed(many)
            ids = [torch.randint(many, (n,), generator=generator) for n in (rows, columns)]
        audio, text = (x.to(dtype) for x in _embeddings(rows, columns, offset))
        bias = torch.tensor(-7.0) if kind == "sigmoid" else None
        _assert_as_accurate(isa, ContrastiveCall(audio, text, torch.tensor(14.3), bias, *ids, offset, kind, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [100.0, -100.0, 0.0])
def test_any_scale_is_as_accurate_also_for_similar_embeddings(dtype, kind, scale):
    isa = instruction_sets()[-1]
    for alike, width in ((0.0, 8), (3.0, 64)):
        audio, text = (x.to(dtype) for x in _embeddings(150, 130, -3, width=width, alike=alike))
        bias = torch.tensor([scale / 2]) if kind == "sigmoid" else None
        _assert_as_accurate(isa, ContrastiveCall(audio, text, torch.tensor([scale]), bias, None, None, -3, kind, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_rows_tie_and_have_no_gradient(isa, dtype):
    clips = 97
    audio = _embeddings(1, 1, 0)[0].to(dtype).expand(clips, 37).clone().requires_grad_()
    scale = torch.tensor(100.0)
    with native_code(isa=isa):
        out = contrastive_loss(audio, audio, scale, backend="native")
        (grad,) = torch.autograd.grad(out.loss, audio)
    assert out.accuracy == 0
    torch.testing.assert_close(out.loss, torch.tensor(float(clips)).log())
    assert grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_for_any_thread_count(dtype, kind):
    audio, text = (x.to(dtype) for x in _embeddings(1700, 1600, 0))
    grads = [torch.full((n,), 1.0 / n) for n in (1700, 1600, 1700)]
    call = ContrastiveCall(audio, text, torch.tensor(10.0), torch.tensor(-3.0), None, None, 0, kind, 0)
    results = []
    for threads in (1, 5):
        with native_code(threads=threads):
            results.append(_both_passes(backend_native, call, grads))
    for name, single, several in zip(OUTPUTS, *results, strict=True):
        assert torch.equal(single, several), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [1, 100])
def test_chunk_size_changes_rounding_only(kind, chunk_size):
    audio, text = _embeddings(250, 250, 0)
    tensors = [audio, text, torch.tensor(10.0), torch.tensor(-3.0)]
    expected = contrastive_loss(*tensors, kind=kind, backend="native")
    for x in tensors:
        x.requires_grad_()
    actual = contrastive_loss(*tensors, kind=kind, chunk_size=chunk_size, backend="native")
    torch.testing.assert_close(tuple(actual), tuple(expected))
    wanted = torch.autograd.grad(contrastive_loss(*tensors, kind=kind, backend="native").loss, tensors)
    torch.testing.assert_close(torch.autograd.grad(actual.loss, tensors), wanted)


def test_strided_and_expanded_inputs():
    audio, text = _embeddings(40, 40, 0)
    ids = torch.arange(80)[::2] // 6
    wide = torch.stack([audio, text], dim=-1)
    views = [(wide[..., 0], wide[..., 1]), (audio.t().contiguous().t(), text[:1].expand(40, -1))]
    for first, second in views:
        actual = contrastive_loss(first, second, torch.tensor(9.0), ids=ids, backend="native")
        dense = [x.clone(memory_format=torch.contiguous_format) for x in (first, second)]
        assert torch.equal(
            actual.loss, contrastive_loss(*dense, torch.tensor(9.0), ids=ids.clone(), backend="native").loss
        )


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    audio, text = (x.requires_grad_() for x in _embeddings(5, 9, 2))
    scale, bias = (torch.tensor(x, requires_grad=True) for x in (10.0, -5.0))
    ids = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 8])
    bias_or_none = bias if kind == "sigmoid" else None
    torch.library.opcheck(
        torch.ops.slap_fast.contrastive_sums,
        (audio, text, scale, bias_or_none, ids[2:7], ids, 2, kind, 0, "native"),
    )


def test_unsupported_dtypes_and_devices_are_rejected():
    audio, text = (x.double() for x in _embeddings(4, 4, 0))
    with pytest.raises(ValueError, match="float64; native code takes float32, bfloat16 and float16"):
        contrastive_loss(audio, text, torch.tensor(1.0), backend="native")
    assert backend_native.rejects(device=torch.device("meta"), dtype=torch.float32) is not None
