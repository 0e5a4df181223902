"""Triton kernels in the interpreter. Alone: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted/rotary.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast.ops import PackedLayout, apply_rotary
from slap_fast.ops.rotary import backend_torch, backend_triton
from slap_fast.ops.rotary.call import Angles
from tests.canaries import Guarded
from tests.oracles.rotary import apply_rotary as oracle

LENGTHS = [4, 0, 1, 17, 40, 0]
AXES = [(None, (10_000.0,)), (4, (500.0, 100.0)), (3, (50.0, 50.0))]
# Without bfloat16: the interpreter truncates to it instead of rounding.
DTYPES = [torch.float32, torch.float16]


def _inputs(dtype: torch.dtype, *, head_dim: int = 16, lengths: list[int] = LENGTHS) -> tuple[Tensor, Tensor, Tensor]:
    """Five query heads and one key head, as views of one tensor."""
    packed = torch.randn(sum(lengths), 6, head_dim, generator=torch.Generator().manual_seed(3)).to(dtype)
    return packed[:, :5], packed[:, 5:], PackedLayout.from_lengths(lengths).cu_seqlens


def _error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).abs().amax())


@pytest.mark.parametrize("head_dim", [12, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens_per_frame", "thetas"), AXES)
def test_as_exact_as_pytorch_both_ways_and_in_place(
    tokens_per_frame: int | None, thetas: tuple[float, ...], dtype: torch.dtype, head_dim: int
) -> None:
    q, k, cu_seqlens = _inputs(dtype, head_dim=head_dim)
    for inverse in (False, True):
        settings = Angles(cu_seqlens, tokens_per_frame or 1, list(thetas)), inverse
        actual, pytorch = ([torch.full(x.shape, torch.nan, dtype=dtype) for x in (q, k)] for _ in range(2))
        backend_triton.rotate(q, k, *settings, *actual)
        backend_torch.rotate(q, k, *settings, *pytorch)
        for source, ours, theirs in zip((q, k), actual, pytorch, strict=True):
            if inverse:
                exact = torch.empty(source.shape, dtype=torch.float64)
                backend_torch.rotate(source.double(), source.double(), *settings, exact, exact.clone())
            else:
                exact = oracle(source.double(), LENGTHS, tokens_per_frame, thetas)
            assert _error(ours, exact) <= max(2 * _error(theirs, exact), torch.finfo(dtype).eps / 2)
        own_q, own_k, _ = _inputs(dtype, head_dim=head_dim)
        backend_triton.rotate(own_q, own_k, *settings, own_q, own_k)
        assert torch.equal(own_q, actual[0])
        assert torch.equal(own_k, actual[1])


def test_gradients_and_strides_other_than_one() -> None:
    q, k, cu_seqlens = _inputs(torch.float32, head_dim=32)
    leaves = [x[..., ::2].clone().requires_grad_() for x in (q, k)]
    strided = [x.mT.contiguous().mT for x in leaves]  # channels of a head are not contiguous
    grads = {}
    for backend in ("triton", "torch"):
        rotated = apply_rotary(
            strided[0], strided[1], cu_seqlens, tokens_per_frame=4, theta=(500.0, 100.0), backend=backend
        )
        grads[backend] = [*rotated, *torch.autograd.grad([x.square().sum() + x.sum() for x in rotated], leaves)]
    for actual, expected in zip(grads["triton"], grads["torch"], strict=True):
        torch.testing.assert_close(actual, expected)
    written = torch.zeros(q.shape[0], 16, 5).mT
    angles = Angles(cu_seqlens, 4, [500.0, 100.0])
    backend_triton.rotate(strided[0].detach(), strided[1].detach(), angles, False, written, k[..., :16])
    assert torch.equal(written, grads["triton"][0].detach())


def test_late_positions_are_as_exact_as_early_ones() -> None:
    q, k, cu_seqlens = _inputs(torch.float32, lengths=[3000])
    for thetas in ([10_000.0], [0.3]):
        actual, exact = torch.empty_like(q), torch.empty(q.shape, dtype=torch.float64)
        backend_triton.rotate(q, k, Angles(cu_seqlens, 1, thetas), False, actual, torch.empty_like(k))
        backend_torch.rotate(q.double(), q.double(), Angles(cu_seqlens, 1, thetas), False, exact, exact.clone())
        limit = 8 * torch.finfo(torch.float32).eps
        assert _error(actual[:32], exact[:32]) < limit
        assert _error(actual[-32:], exact[-32:]) < limit


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_nothing_to_rotate(lengths: list[int]) -> None:
    q, k, cu_seqlens = _inputs(torch.float32, lengths=lengths)
    rotated, _ = apply_rotary(q, k, cu_seqlens, backend="triton")
    assert rotated.shape == q.shape


def test_malformed_offsets_rotate_every_token_and_write_nothing_else() -> None:
    q, k, _ = _inputs(torch.float32)
    far = 2**31 - 1
    for bad in ([0, far, 62], [0, 60, 20], [-far, -1, far], [62, 0, 0], [9]):
        outputs = [Guarded(torch.full_like(x, torch.nan)) for x in (q, k)]
        angles = Angles(torch.tensor(bad, dtype=torch.int32), 1, [10.0])
        backend_triton.rotate(q, k, angles, False, *(output.tensor for output in outputs))
        for source, output in zip((q, k), outputs, strict=True):
            torch.testing.assert_close(output.tensor.norm(dim=-1), source.norm(dim=-1))
            output.assert_untouched_around()


def test_tokens_after_the_last_offset_continue_the_last_sequence() -> None:
    q, k, _ = _inputs(torch.float32)
    results = []
    for offsets in ([0, 20, 62], [0, 20, 40]):
        outputs = torch.empty_like(q), torch.empty_like(k)
        backend_triton.rotate(q, k, Angles(torch.tensor(offsets, dtype=torch.int32), 1, [10.0]), False, *outputs)
        results.append(outputs[0])
    assert torch.equal(*results)
