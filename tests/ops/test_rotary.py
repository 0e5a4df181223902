from __future__ import annotations

import pytest
import torch

from slap_fast.ops.packing import PackedLayout
from slap_fast.ops.rotary import apply_rotary
from tests.oracles.rotary import apply_rotary as oracle

LENGTHS = [4, 0, 1, 13]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_is_rounded_once(dtype):
    q, k, cu_seqlens = _inputs(dtype)
    rotated, _ = apply_rotary(q, k, cu_seqlens, tokens_per_frame=4, theta=(500.0, 100.0))
    assert rotated.dtype == dtype
    expected = oracle(q.double(), LENGTHS, 4, (500.0, 100.0))
    assert (rotated.double() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_scores_depend_on_relative_positions_alone():
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


def test_opcheck_also_for_strided_views():
    qkv = torch.randn(18, 3, 2, 16)
    cu_seqlens = PackedLayout.from_lengths(LENGTHS).cu_seqlens
    q, k, _ = qkv.unbind(1)
    torch.library.opcheck(
        torch.ops.slap_fast.apply_rotary,
        (q.requires_grad_(), k.requires_grad_(), cu_seqlens, 4, [10.0, 20.0], False, "torch"),
    )


def test_compiles_whole_and_once_for_changing_lengths():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    rotate = torch.compile(
        lambda q, k, c: apply_rotary(q, k, c, tokens_per_frame=4), fullgraph=True, backend=counter, dynamic=True
    )
    compiled = set()
    # Sizes that differ from the number of heads: the compiler would take equal ones for the same dimension.
    for lengths in ([3, 8, 1, 1], [5, 2, 11, 2, 2], [4, 4, 9, 6, 1, 1]):
        q, k, cu_seqlens = _inputs(lengths=lengths)
        torch.testing.assert_close(rotate(q, k, cu_seqlens), apply_rotary(q, k, cu_seqlens, tokens_per_frame=4))
        compiled.add(counter.frame_count)
    assert len(compiled) == 1, "changing lengths recompiled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(18, 2, 6)}, "shapes"),
        ({"k": torch.zeros(18, 1, 16)}, "dtype"),
        ({"theta": (1.0, 2.0), "tokens_per_frame": None}, "pair"),
        ({"tokens_per_frame": 0}, "at least 1"),
        ({"cu_seqlens": torch.tensor([0, 17], dtype=torch.int32)}, "18 tokens"),
    ],
)
def test_bad_input_is_named(change, message):
    q, k, cu_seqlens = _inputs()
    arguments = {"q": q, "k": k, "cu_seqlens": cu_seqlens, "tokens_per_frame": 4} | change
    with pytest.raises(ValueError, match=message):
        apply_rotary(**arguments)


def test_a_head_that_does_not_split_into_axes_is_refused():
    q = torch.zeros(18, 2, 6)
    with pytest.raises(ValueError, match="head dimension 6"):
        apply_rotary(q, q, PackedLayout.from_lengths(LENGTHS).cu_seqlens, tokens_per_frame=4)
