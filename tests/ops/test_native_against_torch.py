"""Native against PyTorch backend for random sizes, layouts and dtypes: same values, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slap_fast.ops import (
    MelConfig,
    add_rms_norm,
    apply_rotary,
    contrastive_loss,
    linear,
    linear_cross_entropy,
    log_mel,
    log_mel_patches,
    prototype_cross_entropy,
    rms_norm,
    swiglu,
    varlen_attention,
    waveform_stats,
)
from slap_fast.ops.matrix_product import matrix_product
from tests.ops._calls import as_tuple, loss_of
from tests.ops._native import instruction_sets, native_code, needs_native
from tests.tolerance import assert_as_exact_as

Draw = Callable[[st.SearchStrategy], Any]
# (call of an op with a backend, shapes of its tensors).
Problem = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[tuple[int, ...]]]

SIZES = st.sampled_from([0, 1, 2, 3, 5, 8, 17, 40])
SOME = st.sampled_from([1, 2, 3, 8, 17, 33])


def _offsets(draw: Draw) -> Tensor:
    lengths = draw(st.lists(SIZES, max_size=4))
    return torch.tensor([0, *accumulate(lengths)], dtype=draw(st.sampled_from([torch.int32, torch.int64])))


def _attention(draw: Draw) -> Problem:
    offsets, kv_heads, group, width = _offsets(draw), draw(SOME), draw(st.integers(1, 3)), draw(SOME)
    window = draw(st.sampled_from([(-1, -1), (-1, 0), (0, 0), (2, 3)]))
    tokens = int(offsets[-1])
    kv = (tokens, min(kv_heads, 3), width)

    def run(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, offsets, max_seqlen_q=40, window=window, backend=backend)

    return run, [(tokens, group * kv[1], width), kv, kv]


def _rotary(draw: Draw) -> Problem:
    offsets, heads, quarter = _offsets(draw), draw(st.integers(0, 3)), draw(st.integers(0, 5))
    per_frame = draw(st.sampled_from([None, 1, 4]))
    tokens = int(offsets[-1])

    def run(backend: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return apply_rotary(q, k, offsets, tokens_per_frame=per_frame, backend=backend)

    return run, [(tokens, heads, 4 * quarter), (tokens, 1, 4 * quarter)]


def _norm(draw: Draw) -> Problem:
    rows, width = draw(SIZES), draw(SOME)
    if draw(st.booleans()):
        return lambda backend, x, w: rms_norm(x, w, eps=1e-5, backend=backend), [(rows, width), (width,)]
    shapes = [(rows, width), (rows, width), (width,)]
    return lambda backend, x, y, w: add_rms_norm(x, y, w, eps=1e-5, backend=backend), shapes


def _swiglu(draw: Draw) -> Problem:
    return lambda backend, x: swiglu(x, backend=backend), [(draw(SIZES), 2 * draw(SIZES))]


def _linear(draw: Draw) -> Problem:
    rows, columns, depth = draw(SIZES), draw(SIZES), draw(SOME)
    shapes = [(rows, depth), (columns, depth), (columns,)][: draw(st.sampled_from([2, 3]))]
    return lambda backend, *leaves: linear(*leaves, backend=backend), shapes


def _tokens(draw: Draw) -> Problem:
    tokens, width, vocabulary = draw(SIZES), draw(SIZES), draw(SOME)
    target = torch.tensor([i % vocabulary if i % 4 else -100 for i in range(tokens)], dtype=torch.int64)
    options = {"label_smoothing": draw(st.sampled_from([0.0, 0.1])), "z_loss": draw(st.sampled_from([0.0, 0.01]))}
    return (
        lambda backend, h, w: linear_cross_entropy(h, w, target, **options, backend=backend),
        [(tokens, width), (vocabulary, width)],
    )


def _prototypes(draw: Draw) -> Problem:
    offsets, width, prototypes = _offsets(draw), draw(SIZES), draw(SOME)
    centering = draw(st.sampled_from(["sinkhorn", "softmax"]))

    def run(backend: str, student: Tensor, own: Tensor) -> Tensor:
        others = student.detach().flip(0), own.detach().flip(0)
        return prototype_cross_entropy(
            student,
            others[0],
            own,
            others[1],
            student_temperature=1.0,
            teacher_temperature=2.0,
            cu_seqlens=offsets,
            centering=centering,
            backend=backend,
        )

    return run, [(int(offsets[-1]), width), (prototypes, width)]


def _contrastive(draw: Draw) -> Problem:
    clips, width, kind = draw(SIZES), draw(SIZES), draw(st.sampled_from(["infonce", "sigmoid"]))
    ids = draw(st.sampled_from([None, torch.arange(clips) // 2]))
    scale, bias = torch.tensor(draw(st.sampled_from([2.0, 0.0, -1.0]))), torch.tensor([-1.0])

    def run(backend: str, audio: Tensor, text: Tensor) -> Tensor:
        return contrastive_loss(audio, text, scale, bias, kind=kind, ids=ids, backend=backend).loss

    return run, [(clips, width)] * 2


def _mel(draw: Draw) -> Problem:
    config = MelConfig(
        n_mels=8,
        n_fft=64,
        win_length=64,
        hop_length=16,
        padding=draw(st.sampled_from(["none", "zeros", "reflect", "kaldi"])),
        normalize_per_clip=draw(st.booleans()),
        log_floor=1e-3,
    )
    offsets = 29 * _offsets(draw)
    if draw(st.booleans()):
        run = lambda backend, x: log_mel(x, offsets, config, backend=backend)  # noqa: E731
    else:
        name = {"native": "auto"} if config.normalize_per_clip else {}
        run = lambda backend, x: log_mel_patches(  # noqa: E731
            x, offsets, config, patch_frames=3, patch_mels=4, backend=name.get(backend, backend)
        )
    return run, [(int(offsets[-1]),)]


PROBLEMS = {
    "attention": (_attention, True),
    "rotary": (_rotary, True),
    "norm": (_norm, True),
    "swiglu": (_swiglu, True),
    "linear": (_linear, True),
    "tokens": (_tokens, True),
    "prototypes": (_prototypes, True),
    "contrastive": (_contrastive, True),
    "log_mel": (_mel, False),
}


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every other" and x.dim():
        return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]
    if layout == "columns of more":
        return torch.nn.functional.pad(x, (3, 2), value=torch.nan)[..., 3 : 3 + x.shape[-1]]
    if layout == "at an odd byte" and x.numel():
        memory = bytearray(x.numel() * x.itemsize + 1)
        view = torch.frombuffer(memory, dtype=x.dtype, offset=1).view(x.shape)
        assert view.data_ptr() % x.itemsize
        return view.copy_(x)
    return x


LAYOUTS = st.sampled_from(["plain", "transposed", "every other", "columns of more", "at an odd byte"])


def _both_ways(run: Callable[..., Any], backend: str, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = as_tuple(run(backend, *leaves))
    grads = torch.autograd.grad(loss_of(out), leaves)
    return [*(x.detach() for x in out), *grads]


@needs_native
@pytest.mark.parametrize("name", PROBLEMS)
@settings(max_examples=60)
@given(data=st.data())
def test_values_and_gradients_agree(name: str, data: st.DataObject) -> None:
    problem, takes_16_bits = PROBLEMS[name]
    run, shapes = problem(data.draw)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16][: 3 if takes_16_bits else 1]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    laid_out = [_laid_out(x, data.draw(LAYOUTS)) for x in tensors]
    with native_code(isa=data.draw(st.sampled_from(instruction_sets())), threads=data.draw(st.integers(1, 3))):
        ours = _both_ways(run, "native", laid_out)
    peers = _both_ways(run, "torch", tensors)
    exact = _both_ways(run, "torch", [x.double() for x in tensors])
    assert [x.shape for x in ours] == [x.shape for x in exact]
    # The slope of the logarithm magnifies rounding errors, randomly in either backend.
    factor = 100 if name == "log_mel" else 4
    assert_as_exact_as(ours, peers, exact, size=1 + factor * max(float(x.double().norm()) for x in tensors))


@needs_native
@settings(max_examples=60)
@given(data=st.data())
def test_products_and_statistics_agree(data: st.DataObject) -> None:
    rows, depth, columns = (data.draw(SIZES) for _ in range(3))
    generator = torch.Generator().manual_seed(rows + 50 * columns)
    a = _laid_out(torch.randn(rows, depth, generator=generator), data.draw(LAYOUTS))
    b = _laid_out(torch.randn(depth, columns, generator=generator), data.draw(LAYOUTS))
    with native_code(isa=data.draw(st.sampled_from(instruction_sets()))):
        torch.testing.assert_close(matrix_product(a, b), a.clone() @ b.clone(), rtol=1e-5, atol=1e-5)
        offsets = _offsets(data.draw)
        x = torch.randn(int(offsets[-1]), generator=generator)
        ours = waveform_stats(_laid_out(x, data.draw(LAYOUTS)), offsets, backend="native")
    for one, other in zip(ours, waveform_stats(x, offsets, backend="torch"), strict=True):
        torch.testing.assert_close(one, other)


@needs_native
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (0, 2), (2, 0)])
def test_dimensions_of_size_0_or_1_may_have_any_stride(shape: tuple[int, int]) -> None:
    """No stride is 1 then."""
    x = torch.randn(30).as_strided(shape, (7, 5))
    with native_code(isa=instruction_sets()[-1]):
        torch.testing.assert_close(matrix_product(x, x.T), x.clone() @ x.clone().T)
        target = torch.zeros(shape[0], dtype=torch.int64)
        for backend in ("native", "torch"):
            assert linear_cross_entropy(x, torch.ones(1, shape[1]), target, backend=backend).abs() < 1e-6
