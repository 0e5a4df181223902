from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from slap_fast.ops.attention import varlen_attention
from slap_fast.ops.packed import PackedLayout
from tests.ops._native import native_code, needs_native
from tests.oracles.varlen_attention import varlen_attention as oracle
from tests.tolerance import assert_as_exact_as

pytestmark = needs_native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ("out", "lse", "grad_q", "grad_k", "grad_v")
WINDOWS = [(-1, -1), (0, 0), (1, 0), (0, 1), (47, 48), (48, 48), (-1, 0), (0, -1), (3, -1), (600, 10)]
# Empty, one token, and lengths around a vector, a group of queries, a block of keys and a section of a clip.
LENGTHS = [1, 0, 5, 15, 16, 17, 31, 32, 33, 97, 127, 128, 129, 513]


def _inputs(lengths_q, lengths_k=None, *, heads=2, kv_heads=None, head_dim=16, dtype=torch.float32, seed=0):
    """q, and k and v as views of a packed tensor, rounded to `dtype`; and their layouts."""
    generator = torch.Generator().manual_seed(seed)
    lengths_k = lengths_q if lengths_k is None else lengths_k
    q = torch.randn(sum(lengths_q), heads, head_dim, generator=generator)
    kv = torch.randn(sum(lengths_k), 2, kv_heads or heads, head_dim, generator=generator)
    return [x.to(dtype) for x in (q, *kv.unbind(1))], [PackedLayout.from_lengths(x) for x in (lengths_q, lengths_k)]


def _attend(tensors, layouts, backend="native", **settings):
    queries, keys = layouts
    return varlen_attention(
        *tensors,
        queries.cu_seqlens,
        keys.cu_seqlens,
        max_seqlen_q=queries.max_seqlen,
        max_seqlen_k=keys.max_seqlen,
        return_lse=True,
        backend=backend,
        **settings,
    )


def _everything(attend, tensors, seed=1):
    """Output, log-sum-exp, and gradients for random gradients of both."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = attend(leaves)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator).to(tensors[0].dtype)
    grad_lse = torch.randn(lse.shape, generator=generator) * lse.isfinite()
    grads = torch.autograd.grad((out, lse), leaves, (grad.to(out.dtype), grad_lse.to(lse.dtype)))
    return [out.detach(), lse.detach(), *grads]


def _assert_as_exact_as_pytorch(tensors, layouts, **settings):
    """At most twice the error of the PyTorch backend, which rounds only inputs and results."""
    dtype = tensors[0].dtype
    actual = _everything(lambda x: _attend(x, layouts, **settings), tensors)
    peers = _everything(lambda x: _attend(x, layouts, "torch", **settings), tensors)
    exact = _everything(lambda x: _attend(x, layouts, "torch", **settings), [x.double() for x in tensors])
    assert [x.dtype for x in actual] == [dtype, torch.float32, dtype, dtype, dtype]
    assert_as_exact_as(actual, peers, exact, NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_output_and_gradients_are_as_exact_as_pytorch(isa, dtype, window):
    tensors, layouts = _inputs(LENGTHS, dtype=dtype, heads=1)
    with native_code(isa=isa):
        _assert_as_exact_as_pytorch(tensors, layouts, window=window)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (0, -1), (2, 1), (40, 3)])
def test_cross_attention_grouped_heads_and_any_scale(isa, window):
    lengths_q, lengths_k = [3, 1, 70, 0, 2, 600], [9, 4, 33, 3, 0, 40]
    for pair in ((lengths_q, lengths_k), (lengths_k, lengths_q)):
        for scale in (None, 0.3, -0.2, 0.0):
            tensors, layouts = _inputs(*pair, heads=6, kv_heads=2, seed=len(window))
            with native_code(isa=isa):
                _assert_as_exact_as_pytorch(tensors, layouts, window=window, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [3, 16, 24, 64, 80, 200, 256])
def test_any_head_dimension(isa, dtype, head_dim):
    tensors, layouts = _inputs([300, 7], dtype=dtype, head_dim=head_dim, heads=2, kv_heads=1)
    with native_code(isa=isa):
        _assert_as_exact_as_pytorch(tensors, layouts)
        _assert_as_exact_as_pytorch(tensors, layouts, window=(20, 9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 16, 64, 256])
def test_error_is_at_most_twice_that_of_sdpa_in_the_same_dtype(isa, dtype, head_dim):
    lengths = [1, 33, 140]
    tensors, layouts = _inputs(lengths, dtype=dtype, head_dim=head_dim)

    def sdpa(leaves):
        clips = zip(*(x.split(lengths) for x in leaves), strict=True)
        parts = [F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in clip))[0] for clip in clips]
        out = torch.cat([part.transpose(0, 1) for part in parts])
        return out, out.new_zeros(2, sum(lengths)) + 0 * out.sum()

    def exact(leaves):
        out, _ = oracle(*leaves, lengths, lengths, (-1, -1), head_dim**-0.5)
        return out, out.new_zeros(2, sum(lengths)) + 0 * out.sum()

    def mine(leaves):
        out, _ = _attend(leaves, layouts)
        return out, out.new_zeros(2, sum(lengths)) + 0 * out.sum()

    with native_code(isa=isa):
        actual = _everything(mine, tensors)
    wanted = _everything(exact, [x.double() for x in tensors])
    assert_as_exact_as(actual, _everything(sdpa, tensors), wanted, NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [(-1, -1), (48, 48)])
def test_the_bits_of_a_clip_do_not_depend_on_threads_or_batch(isa, dtype, window):
    lengths = [700, 33, 0, 1, 1200]
    tensors, layouts = _inputs(lengths, dtype=dtype, head_dim=64, heads=4, kv_heads=2)
    with native_code(isa=isa, threads=1):
        expected = _everything(lambda x: _attend(x, layouts, window=window), tensors)
    for threads in (2, 5):
        with native_code(isa=isa, threads=threads):
            again = _everything(lambda x: _attend(x, layouts, window=window), tensors)
        for first, second in zip(expected, again, strict=True):
            assert torch.equal(first, second)
    clip = PackedLayout.from_lengths([33])
    with native_code(isa=isa):
        out, lse = _attend([x[700:733] for x in tensors], (clip, clip), window=window)
    assert torch.equal(out, expected[0][700:733])
    assert torch.equal(lse, expected[1][:, 700:733])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_clip_does_not_change_the_others(isa, dtype, bad):
    lengths = [4, 1, 33, 3, 64]
    tensors, layouts = _inputs(lengths, dtype=dtype)
    with native_code(isa=isa):
        before = _everything(lambda x: _attend(x, layouts, window=(20, 20)), tensors)
        for clip, (begin, length) in enumerate(zip(layouts[0].cu_seqlens.tolist(), lengths, strict=False)):
            spoiled = [x.clone() for x in tensors]
            for x in spoiled:
                x[begin : begin + length] = bad
            after = _everything(lambda x, spoiled=spoiled: _attend(x, layouts, window=(20, 20)), spoiled)
            others = torch.ones(sum(lengths), dtype=torch.bool)
            others[begin : begin + length] = False
            for name, first, second in zip("olqkv", before, after, strict=True):
                if name == "l":
                    first, second = first.t(), second.t()
                assert torch.equal(first[others], second[others]), (clip, name)


def test_large_scores_neither_overflow_nor_vanish(isa):
    tensors, layouts = _inputs([300], head_dim=64)
    tensors[0] *= 1e4
    with native_code(isa=isa):
        out, lse = _attend(tensors, layouts)
    exact, exact_lse = _attend([x.double() for x in tensors], layouts, "torch")
    assert_as_exact_as([out, lse], _attend(tensors, layouts, "torch"), [exact, exact_lse], ("out", "lse"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_queries_and_gradients(dtype):
    lengths = [7, 90]
    layout = PackedLayout.from_lengths(lengths)
    qkv = torch.randn(97, 3, 2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    spread = torch.randn(97, 2, 128, generator=torch.Generator().manual_seed(1)).to(dtype)[..., ::2]
    for q in (qkv[:, 0], spread):
        _assert_as_exact_as_pytorch([q, qkv[:, 1], qkv[:, 2]], (layout, layout), window=(5, 5))
    leaves = [x.clone().requires_grad_() for x in qkv.unbind(1)]
    _attend(leaves, (layout, layout))[0].sum().backward()  # an expanded gradient: all strides are 0
    expected = [x.clone().requires_grad_() for x in qkv.unbind(1)]
    _attend([*expected[:2], expected[2]], (layout, layout))[0].backward(torch.ones(97, 2, 64, dtype=dtype))
    for mine, wanted in zip(leaves, expected, strict=True):
        assert torch.equal(mine.grad, wanted.grad)


def test_five_thousand_short_clips():
    lengths = torch.randint(0, 5, (5000,), generator=torch.Generator().manual_seed(1)).tolist()
    tensors, layouts = _inputs(lengths, heads=1)
    actual = _everything(lambda x: _attend(x, layouts), tensors)
    padded, exact = (
        _everything(lambda x: _attend(x, layouts, "torch_padded"), inputs)
        for inputs in (tensors, [x.double() for x in tensors])
    )
    assert_as_exact_as(actual, padded, exact, NAMES)


def test_a_query_without_keys_gives_0_and_an_lse_of_minus_infinity():
    tensors, layouts = _inputs([2], [0])
    out, lse, *grads = _everything(lambda x: _attend(x, layouts), tensors)
    assert torch.equal(out, torch.zeros_like(out))
    assert (lse == -math.inf).all()
    assert torch.equal(grads[0], torch.zeros_like(out))


def test_one_hour_of_audio_is_as_exact_as_pytorch():
    tensors, layouts = _inputs([90_000], heads=2)
    actual = _everything(lambda x: _attend(x, layouts, window=(48, 48)), tensors)
    plain, exact = (
        _everything(lambda x: _attend(x, layouts, "torch", window=(48, 48)), inputs)
        for inputs in (tensors, [x.double() for x in tensors])
    )
    assert_as_exact_as(actual, plain, exact, NAMES)


def test_opcheck():
    tensors, (queries, keys) = _inputs([3, 0, 4])
    leaves = [x.detach().requires_grad_() for x in tensors]
    torch.library.opcheck(
        torch.ops.slap_fast.varlen_attention,
        (*leaves, queries.cu_seqlens, keys.cu_seqlens, 4, 4, 1, 2, 0.25, "native"),
    )


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (torch.zeros(3, 1, 16, dtype=torch.float64), "float64; native code takes float32, bfloat16 and float16"),
        (torch.zeros(3, 1, 257), "head dimension is 257; native code takes 1 to 256"),
    ],
)
def test_a_call_that_it_cannot_serve_is_refused_with_the_reason(q, message):
    layout = PackedLayout.from_lengths([3])
    with pytest.raises(ValueError, match=message):
        _attend((q, q, q), (layout, layout))
