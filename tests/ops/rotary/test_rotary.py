from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.rotary import apply_rotary, apply_rotary_qkv
from tests.ops._native import BACKENDS
from tests.oracles.rotary import apply_rotary as oracle

LENGTHS = [4, 0, 1, 13]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
AXES = [(None, 10_000.0, (10_000.0,)), (4, (500.0, 100.0), (500.0, 100.0)), (3, 50.0, (50.0, 50.0))]


def _inputs(dtype=torch.float64, *, head_dim=16, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(sum(lengths), 3, head_dim, generator=generator, dtype=torch.float64)
    k = torch.randn(sum(lengths), 1, head_dim, generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype), PackedLayout.from_lengths(lengths).cu_seqlens


@pytest.mark.parametrize(("tokens_per_frame", "theta", "thetas"), AXES)
def test_rotation_equals_the_oracle(tokens_per_frame, theta, thetas):
    q, k, cu_seqlens = _inputs()
    rotated = apply_rotary(q, k, cu_seqlens, tokens_per_frame=tokens_per_frame, theta=theta)
    for actual, source in zip(rotated, (q, k), strict=True):
        torch.testing.assert_close(actual, oracle(source, LENGTHS, tokens_per_frame, thetas))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_rounded_once(dtype, backend):
    q, k, cu_seqlens = _inputs(dtype)
    rotated, _ = apply_rotary(q, k, cu_seqlens, tokens_per_frame=4, theta=(500.0, 100.0), backend=backend)
    assert rotated.dtype == dtype
    expected = oracle(q.double(), LENGTHS, 4, (500.0, 100.0))
    assert (rotated.double() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_scores_depend_only_on_relative_positions():
    q = torch.randn(1, 1, 32, dtype=torch.float64).expand(40, 1, 32)
    cu_seqlens = PackedLayout.from_lengths([40]).cu_seqlens
    rotated, _ = apply_rotary(q, q, cu_seqlens, tokens_per_frame=4, theta=100.0)
    scores = rotated[:, 0] @ rotated[:, 0].t()
    torch.testing.assert_close(scores[0, 9], scores[20, 29])


def test_an_hour_of_positions_keeps_float32_precision():
    q, k, cu_seqlens = _inputs(torch.float32, lengths=[90_000])
    rotated, _ = apply_rotary(q, k, cu_seqlens, tokens_per_frame=4)
    precise, _ = apply_rotary(q.double(), k.double(), cu_seqlens, tokens_per_frame=4)
    # The angle itself is rounded: 22,500 frames carry an absolute error of about half an ulp, 1e-3.
    assert (rotated[-4:].double() - precise[-4:]).abs().max() < 5e-3


@pytest.mark.parametrize(("tokens_per_frame", "theta", "thetas"), AXES)
def test_gradcheck(tokens_per_frame, theta, thetas):
    q, k, cu_seqlens = _inputs(head_dim=8, lengths=[2, 3])
    assert torch.autograd.gradcheck(
        lambda q, k: apply_rotary(q, k, cu_seqlens, tokens_per_frame=tokens_per_frame, theta=theta),
        (q.requires_grad_(), k.requires_grad_()),
    )


def _packed(dtype=torch.float64, *, head_dim=8, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(sum(lengths), 3, 2, head_dim, generator=generator, dtype=torch.float64).to(dtype)


def _compilable(backend):
    """The most exact dtype that the backend takes."""
    return torch.float32 if backend == "native" else torch.float64


@pytest.mark.parametrize(("tokens_per_frame", "theta", "thetas"), AXES)
def test_a_packed_projection_equals_the_oracle_on_its_views(tokens_per_frame, theta, thetas):
    qkv, cu_seqlens = _packed(head_dim=16), PackedLayout.from_lengths(LENGTHS).cu_seqlens
    q, k, v = apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=tokens_per_frame, theta=theta)
    torch.testing.assert_close(q, oracle(qkv[:, 0], LENGTHS, tokens_per_frame, thetas))
    torch.testing.assert_close(k, oracle(qkv[:, 1], LENGTHS, tokens_per_frame, thetas))
    assert torch.equal(v, qkv[:, 2])
    assert all(part.is_contiguous() for part in (q, k, v))


@pytest.mark.parametrize("tokens_per_frame", [None, 4])
def test_gradcheck_of_a_packed_projection(tokens_per_frame):
    cu_seqlens = PackedLayout.from_lengths([2, 3]).cu_seqlens
    qkv = _packed(lengths=[2, 3]).requires_grad_()

    def rotate(qkv):
        return apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=tokens_per_frame)

    assert torch.autograd.gradcheck(rotate, qkv)
    assert torch.autograd.gradgradcheck(rotate, qkv)


@each_backend
@pytest.mark.parametrize("unused", [0, 1, 2])
def test_unused_outputs_contribute_no_gradient(unused, backend):
    cu_seqlens = PackedLayout.from_lengths(LENGTHS).cu_seqlens
    qkv = _packed(_compilable(backend)).requires_grad_()
    parts = list(apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=4, backend=backend))
    del parts[unused]
    (grad,) = torch.autograd.grad(sum(part.square().sum() for part in parts), qkv)
    expected = 2 * qkv.detach()  # a rotation keeps the square
    expected[:, unused] = 0
    torch.testing.assert_close(grad, expected)


@each_backend
def test_in_place_gives_the_same_bits_in_the_same_memory(backend):
    cu_seqlens = PackedLayout.from_lengths(LENGTHS).cu_seqlens
    qkv = _packed(_compilable(backend))
    expected = apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=4, backend=backend)
    for call in (
        lambda x: apply_rotary_qkv(x, cu_seqlens, tokens_per_frame=4, inplace=True, backend=backend),
        lambda x: apply_rotary(x[:, 0], x[:, 1], cu_seqlens, tokens_per_frame=4, inplace=True, backend=backend),
    ):
        changed = qkv.clone()
        version = changed._version
        returned = call(changed)
        assert torch.equal(changed, torch.stack(expected, dim=1))
        assert changed._version > version, "autograd would miss the change"
        assert [part.data_ptr() for part in returned] == [changed[:, i].data_ptr() for i in range(len(returned))]


@each_backend
def test_in_place_with_channels_that_are_not_contiguous(backend):
    cu_seqlens = PackedLayout.from_lengths(LENGTHS).cu_seqlens
    q = _packed(_compilable(backend))[:, 0].transpose(1, 2).contiguous().transpose(1, 2)  # [T, H, D]
    k = q[:, :1].flip(0)
    expected = apply_rotary(q.contiguous(), k.contiguous(), cu_seqlens, backend=backend)
    apply_rotary(q, k, cu_seqlens, inplace=True, backend=backend)
    torch.testing.assert_close((q, k), expected, rtol=0, atol=0)


def test_in_place_is_rejected_where_a_gradient_is_recorded_or_memory_overlaps():
    cu_seqlens = PackedLayout.from_lengths(LENGTHS).cu_seqlens
    qkv = _packed().requires_grad_()
    with pytest.raises(ValueError, match=r"requires a gradient.*apply_rotary_qkv"):
        apply_rotary(qkv[:, 0], qkv[:, 1], cu_seqlens, inplace=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        apply_rotary_qkv(qkv, cu_seqlens, inplace=True)
    with pytest.raises(ValueError, match=r"q of strides .* overlaps itself"):
        apply_rotary(torch.zeros(18, 1, 8).expand(18, 2, 8), torch.zeros(18, 1, 8), cu_seqlens, inplace=True)
    with torch.no_grad():
        apply_rotary_qkv(qkv.detach().clone(), cu_seqlens, inplace=True)


@each_backend
def test_opcheck_also_for_strided_views(backend):
    dtype = _compilable(backend)
    settings = (PackedLayout.from_lengths(LENGTHS).cu_seqlens, 4, [10.0, 20.0])
    q, k, v = _packed(dtype).unbind(1)
    ops = torch.ops.slap_fast
    torch.library.opcheck(ops.apply_rotary, (q.requires_grad_(), k.requires_grad_(), *settings, False, backend))
    torch.library.opcheck(ops.apply_rotary_, (q.detach().clone(), k.detach().clone(), *settings, backend))
    torch.library.opcheck(ops.rotary_unpack, (_packed(dtype).requires_grad_(), *settings, False, backend))
    torch.library.opcheck(ops.rotary_pack, (q, k, v.requires_grad_(), *settings, True, backend))


@each_backend
def test_compiles_to_one_graph_once_for_changing_lengths(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def rotate(qkv, cu_seqlens):
        q, k, v = apply_rotary_qkv(qkv * 2, cu_seqlens, tokens_per_frame=4, backend=backend)
        q, k = apply_rotary(q, k, cu_seqlens, backend=backend)
        with torch.no_grad():
            inplace = apply_rotary_qkv(qkv.detach() + 1, cu_seqlens, inplace=True, backend=backend)
        return q, k, v, *inplace

    compiled = torch.compile(rotate, fullgraph=True, backend=counter, dynamic=True)
    counts = set()
    # Sizes differ from the number of heads: the compiler would treat equal sizes as one dimension.
    for lengths in ([3, 8, 1, 1], [5, 2, 11, 2, 2], [4, 4, 9, 6, 1, 1]):
        cu_seqlens = PackedLayout.from_lengths(lengths).cu_seqlens
        results = []
        for call in (rotate, compiled):
            qkv = _packed(_compilable(backend), lengths=lengths).requires_grad_()
            parts = call(qkv, cu_seqlens)
            sum((i + 1) * part.cos().sum() for i, part in enumerate(parts[:3])).backward()
            results.append([*(part.detach() for part in parts), qkv.grad])
        torch.testing.assert_close(results[1], results[0])
        counts.add(counter.frame_count)
    assert len(counts) == 1, "changing lengths recompiled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(18, 2, 6)}, "shapes"),
        ({"k": torch.zeros(18, 1, 16)}, "dtype"),
        ({"theta": (1.0, 2.0), "tokens_per_frame": None}, "pair"),
        ({"tokens_per_frame": 0}, "at least 1"),
        ({"theta": -1.0}, "positive, finite base"),
        ({"theta": float("nan")}, "positive, finite base"),
        ({"theta": (float("nan"), 1.0)}, "positive, finite base"),
        ({"theta": (1.0, float("inf"))}, "positive, finite base"),
        ({"cu_seqlens": torch.tensor([0, 100_000, 5, 18], dtype=torch.int32)}, "falls from 100000 to 5 at item 1"),
        ({"cu_seqlens": torch.tensor([0, 17], dtype=torch.int32)}, "18 tokens"),
    ],
)
def test_bad_input_is_named(change, message):
    q, k, cu_seqlens = _inputs()
    arguments = {"q": q, "k": k, "cu_seqlens": cu_seqlens, "tokens_per_frame": 4} | change
    with pytest.raises(ValueError, match=message):
        apply_rotary(**arguments)


def test_a_head_dimension_that_does_not_split_into_axes_is_rejected():
    q = torch.zeros(18, 2, 6)
    with pytest.raises(ValueError, match="head dimension 6"):
        apply_rotary(q, q, PackedLayout.from_lengths(LENGTHS).cu_seqlens, tokens_per_frame=4)


def test_a_projection_of_the_wrong_shape_is_rejected():
    with pytest.raises(ValueError, match=r"qkv has shape \(18, 2, 2, 8\)"):
        apply_rotary_qkv(torch.zeros(18, 2, 2, 8), PackedLayout.from_lengths(LENGTHS).cu_seqlens)
