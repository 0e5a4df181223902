from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast import native
from slap_fast.commands import info
from slap_fast.ops.attention import BACKENDS as REGISTERED
from slap_fast.ops.attention import varlen_attention
from slap_fast.ops.packed import PackedLayout
from tests.oracles.varlen_attention import varlen_attention as oracle
from tests.tolerance import assert_as_exact_as

BACKENDS = ["torch", "torch_padded"]
WINDOWS = [(-1, -1), (0, 0), (1, 0), (0, 1), (47, 48), (48, 48), (-1, 0), (0, -1), (3, -1)]
# One token, an empty sequence, and lengths around tiles of 128 rows and a window of 97 tokens.
LENGTHS = [1, 0, 5, 96, 97, 98, 127, 128, 129, 260]


def _inputs(lengths_q, lengths_k=None, *, heads=4, kv_heads=None, head_dim=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths_k = lengths_q if lengths_k is None else lengths_k
    q = torch.randn(sum(lengths_q), heads, head_dim, generator=generator, dtype=torch.float64)
    k = torch.randn(sum(lengths_k), kv_heads or heads, head_dim, generator=generator, dtype=torch.float64)
    v = torch.randn(sum(lengths_k), kv_heads or heads, head_dim, generator=generator, dtype=torch.float64)
    layouts = PackedLayout.from_lengths(lengths_q), PackedLayout.from_lengths(lengths_k)
    return [x.to(dtype).requires_grad_() for x in (q, k, v)], layouts


def _run(tensors, layouts, backend, **settings):
    queries, keys = layouts
    return varlen_attention(
        *tensors,
        queries.cu_seqlens,
        keys.cu_seqlens,
        max_seqlen_q=queries.max_seqlen,
        max_seqlen_k=keys.max_seqlen,
        backend=backend,
        **settings,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", WINDOWS)
def test_output_lse_and_gradients_equal_the_oracle(backend, window):
    tensors, layouts = _inputs(LENGTHS)
    out, lse = _run(tensors, layouts, backend, window=window, return_lse=True)
    expected, expected_lse = oracle(*tensors, LENGTHS, LENGTHS, window, 16**-0.5)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)

    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    grads = torch.autograd.grad((out, lse), tensors, (grad, grad_lse))
    for actual, wanted in zip(
        grads, torch.autograd.grad((expected, expected_lse), tensors, (grad, grad_lse)), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1)])
def test_cross_attention_aligns_the_last_query_with_the_last_key(backend, window):
    lengths_q, lengths_k = [3, 1, 7, 0, 2], [9, 4, 2, 3, 0]
    tensors, layouts = _inputs(lengths_q, lengths_k)
    out = _run(tensors, layouts, backend, window=window)
    expected, _ = oracle(*tensors, lengths_q, lengths_k, window, 16**-0.5)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    # For a row without keys the oracle's gradient is NaN, the true one 0.
    expected_grads = [torch.nan_to_num(g) for g in torch.autograd.grad(expected, tensors, grad)]
    for actual, wanted in zip(torch.autograd.grad(out, tensors, grad), expected_grads, strict=True):
        assert torch.isfinite(actual).all()
        if window == (-1, -1):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_heads_share_key_heads_in_consecutive_groups(backend):
    tensors, layouts = _inputs([5, 30], heads=6, kv_heads=2)
    out = _run(tensors, layouts, backend, window=(4, 4))
    expected, _ = oracle(*tensors, [5, 30], [5, 30], (4, 4), 16**-0.5)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for actual, wanted in zip(
        torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [16, 64, 256])
def test_error_is_at_most_twice_that_of_sdpa_in_the_same_dtype(backend, dtype, head_dim):
    lengths = [1, 33, 140]
    tensors, layouts = _inputs(lengths, dtype=dtype, head_dim=head_dim)
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    expected, _ = oracle(*doubles, lengths, lengths, (-1, -1), head_dim**-0.5)
    peers = [x.detach().clone().requires_grad_() for x in tensors]
    peer = torch.cat(
        [
            F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in clip))[0].transpose(0, 1)
            for clip in zip(*(x.split(lengths) for x in peers), strict=True)
        ]
    )
    out = _run(tensors, layouts, backend)
    assert out.dtype == dtype
    grad = torch.randn_like(out)

    assert_as_exact_as(
        [out, *torch.autograd.grad(out, tensors, grad)],
        [peer, *torch.autograd.grad(peer, peers, grad)],
        [expected, *torch.autograd.grad(expected, doubles, grad.double())],
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [(-1, -1), (2, 2)])
def test_a_sequence_does_not_change_the_others(backend, window):
    lengths = [4, 1, 9, 3]
    tensors, layouts = _inputs(lengths)
    before = _run(tensors, layouts, backend, window=window)
    for clip, (begin, end) in enumerate(pairwise(layouts[0].cu_seqlens.tolist())):
        changed = [x.detach().clone() for x in tensors]
        for x in changed:
            x[begin:end] = 1e3
        after = _run(changed, layouts, backend, window=window)
        untouched = torch.ones(sum(lengths), dtype=torch.bool)
        untouched[begin:end] = False
        torch.testing.assert_close(after[untouched], before[untouched], rtol=0, atol=0, msg=f"clip {clip} leaks")


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views_of_packed_qkv_and_a_scale(backend):
    lengths = [7, 20]
    layout = PackedLayout.from_lengths(lengths)
    qkv = torch.randn(27, 3, 2, 16, dtype=torch.float64, requires_grad=True)
    out = _run(qkv.unbind(1), (layout, layout), backend, scale=0.5)
    expected, _ = oracle(*qkv.unbind(1), lengths, lengths, (-1, -1), 0.5)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), qkv), torch.autograd.grad(expected.square().sum(), qkv)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_five_thousand_short_clips(backend):
    lengths = torch.randint(0, 5, (5000,), generator=torch.Generator().manual_seed(1)).tolist()
    tensors, layouts = _inputs(lengths, heads=1, dtype=torch.float32)
    out = _run(tensors, layouts, backend)
    peer, _ = oracle(*tensors, lengths, lengths, (-1, -1), 16**-0.5)
    exact, _ = oracle(*(x.double() for x in tensors), lengths, lengths, (-1, -1), 16**-0.5)
    assert_as_exact_as([out], [peer], [exact])


def test_one_hour_of_audio_is_as_exact_as_dense_attention_over_each_window():
    tensors, layouts = _inputs([90_000], heads=1, dtype=torch.float32)
    out = _run(tensors, layouts, "torch", window=(48, 48))
    for begin, end in ((0, 300), (44_000, 44_300), (89_700, 90_000)):
        first, last = max(0, begin - 48), min(90_000, end + 48)
        parts = [x[first:last] for x in tensors]
        peer, exact = (
            oracle(*part, [last - first], [last - first], (48, 48), 16**-0.5)[0][begin - first : end - first]
            for part in (parts, [x.double() for x in parts])
        )
        assert_as_exact_as([out[begin:end]], [peer], [exact])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_an_empty_batch_gives_an_empty_result(backend, lengths):
    tensors, layouts = _inputs(lengths)
    out = _run(tensors, layouts, backend)
    assert out.shape == (0, 4, 16)
    out.sum().backward()
    assert tensors[0].grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    tensors, layouts = _inputs([3, 1, 4], heads=2, kv_heads=1, head_dim=4)
    assert torch.autograd.gradcheck(
        lambda *x: _run(x, layouts, backend, window=(1, 2), return_lse=True), tensors, fast_mode=False
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    tensors, (queries, keys) = _inputs([3, 0, 4], dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.slap_fast.varlen_attention,
        (*tensors, queries.cu_seqlens, keys.cu_seqlens, 4, 4, 1, 2, 0.25, backend),
    )


# In float32 the native backend serves, if there is one.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_graph_serves_changing_lengths(dtype):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def attend(q, k, v, cu_seqlens, max_seqlen):
        return varlen_attention(q, k, v, cu_seqlens, max_seqlen_q=max_seqlen, window=(2, 2)) * 2

    for seed, lengths in enumerate(([3, 8], [5, 2, 11], [4, 4, 9, 6])):
        tensors, (layout, _) = _inputs(lengths, seed=seed, dtype=dtype)

        def results(out, leaves):
            return [out, *torch.autograd.grad(out.square().sum(), leaves)]

        ours = results(attend(*tensors, layout.cu_seqlens, layout.max_seqlen), tensors)
        peers = results(2 * _run(tensors, (layout, layout), "torch", window=(2, 2)), tensors)
        doubles = [x.detach().double().requires_grad_() for x in tensors]
        assert_as_exact_as(
            ours, peers, results(2 * oracle(*doubles, lengths, lengths, (2, 2), 0.25)[0], doubles), ("out", *"qkv")
        )
    assert counter.frame_count == 1


def test_the_same_bits_from_run_to_run():
    tensors, layouts = _inputs([70, 200, 31], dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = _run(tensors, layouts, "auto", window=(48, 48))
        runs.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens_q": torch.tensor([0, 3], dtype=torch.int32)}, "from 0 to the 7 tokens"),
        ({"cu_seqlens_q": torch.tensor([0, 8, 7], dtype=torch.int32)}, "falls from 8 to 7 at item 1"),
        ({"cu_seqlens_q": torch.tensor([0, 3, 2, 7], dtype=torch.int32)}, "falls from 3 to 2 at item 1"),
        # In int32 arithmetic these differences are 2147483647, 1, 2147483647 and 8: all valid lengths.
        (
            {
                "cu_seqlens_q": torch.tensor([0, 2**31 - 1, -(2**31), -1, 7], dtype=torch.int32),
                "max_seqlen_q": 2**31 - 1,
            },
            f"falls from {2**31 - 1} to {-(2**31)} at item 1",
        ),
        (
            {"cu_seqlens_k": torch.tensor([0, 7], dtype=torch.int32), "max_seqlen_k": 7},
            "has 2 sequences, .* 1;",
        ),
        ({"cu_seqlens_k": torch.tensor([0, 7], dtype=torch.int32)}, "max_seqlen_k is None"),
        ({"k": torch.zeros(5, 4, 16), "v": torch.zeros(5, 4, 16)}, "cu_seqlens_k runs from 0 to 7; .* 5 tokens of k"),
        ({"k": torch.zeros(7, 0, 16), "v": torch.zeros(7, 0, 16)}, "multiple of the 0 key heads"),
        ({"cu_seqlens_q": torch.tensor([0, 3, 7], dtype=torch.int16)}, "int32 or int64"),
        ({"max_seqlen_q": 3}, "max_seqlen_q \\(3\\)"),
        ({"window": (-2, 0)}, "-1 for unlimited"),
        ({"k": torch.zeros(7, 3, 16)}, "shapes"),
        ({"q": torch.zeros(7, 4, 16, dtype=torch.int32)}, "floating-point dtype"),
        (dict.fromkeys("qkv", torch.zeros(7, 4, 0)), "the head dimension must be positive"),
        (dict.fromkeys("qkv", torch.zeros(7, 4, 0)) | {"scale": 1.0}, "the head dimension must be positive"),
        ({"backend": "flash"}, "flash"),
    ],
)
def test_the_error_names_what_is_wrong(change, message):
    tensors, (layout, _) = _inputs([3, 4], dtype=torch.float32)
    arguments = dict(zip("qkv", tensors, strict=True))
    arguments |= {"cu_seqlens_q": layout.cu_seqlens, "max_seqlen_q": 4} | change
    with pytest.raises(ValueError, match=message):
        varlen_attention(**arguments)


def test_a_query_without_keys_gives_0_and_an_lse_of_minus_infinity():
    q, k = torch.randn(2, 1, 16), torch.randn(0, 1, 16)
    queries, keys = PackedLayout.from_lengths([2]), PackedLayout.from_lengths([0])
    for backend in BACKENDS:
        out, lse = _run((q, k, k), (queries, keys), backend, return_lse=True)
        assert torch.equal(out, torch.zeros_like(out))
        assert (lse == -math.inf).all()


def test_auto_takes_native_then_torch_on_a_cpu_and_info_prints_the_order(monkeypatch):
    chosen = []
    for name, module in REGISTERED.items():

        def forward(call, name=name, forward=module.forward):
            chosen.append(name)
            return forward(call)

        monkeypatch.setattr(module, "forward", forward)
    for dtype in (torch.float32, torch.float64):
        tensors, layouts = _inputs([3, 8], dtype=dtype)
        for window in ((-1, -1), (2, 2)):
            _run(tensors, layouts, "auto", window=window)
    assert chosen == [*["torch" if native.unavailable() else "native"] * 2, "torch", "torch"]
    order = ["native", "torch", "flash_attn_4", "flash_attn_3", "flash_attn_2", "triton"]
    order += ["torch_varlen", "torch_efficient", "torch_padded"]
    assert [entry.split()[0] for entry in info.backends()["varlen_attention"].split("; ")] == order
