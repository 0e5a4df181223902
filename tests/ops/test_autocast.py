"""Under autocast, ops take mixed dtypes and compute in the dtypes that PyTorch's own ops use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast.ops import add_rms_norm, rms_norm
from tests.ops._calls import CALLS, as_tuple, loss_of
from tests.ops._native import BACKENDS, needs_native

LOW = torch.bfloat16
# Dtype that each op computes in, given float32 and bfloat16 tensors.
COMPUTED_IN = {
    "varlen_attention": LOW,
    "apply_rotary": torch.float32,
    "apply_rotary_qkv": None,  # takes one tensor and keeps its dtype, like swiglu
    "rms_norm": torch.float32,
    "add_rms_norm": torch.float32,
    "swiglu": None,
    "linear": LOW,
    "linear_cross_entropy": LOW,
    "prototype_cross_entropy": LOW,
    "contrastive_loss": LOW,
    "contrastive_loss of sigmoids": LOW,
    "log_mel": torch.float32,
    "log_mel_patches": torch.float32,
    "normalize_clips": torch.float32,
}
LOSSES = ("linear_cross_entropy", "prototype_cross_entropy", "contrastive_loss", "contrastive_loss of sigmoids")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("first", [torch.float32, LOW], ids=str)
def test_mixed_dtypes_are_cast_as_pytorch_casts_them(name: str, first: torch.dtype, backend: str) -> None:
    call, wanted = CALLS[name], COMPUTED_IN[name]
    dtypes = [first, *[LOW if first == torch.float32 else torch.float32] * (len(call.shapes) - 1)]
    leaves = [
        x.to(dtype).requires_grad_(i in call.differentiable)
        for i, (x, dtype) in enumerate(zip(call.tensors(), dtypes, strict=True))
    ]
    with torch.autocast("cpu", dtype=LOW):
        out = as_tuple(call.run(backend, *leaves))
        grads = torch.autograd.grad(loss_of(out), [leaves[place] for place in call.differentiable])
    cast = [x.detach().to(wanted or first).requires_grad_(x.requires_grad) for x in leaves]
    plain = as_tuple(call.run(backend, *cast))
    expected = torch.autograd.grad(loss_of(plain), [cast[place] for place in call.differentiable])
    for ours, other in zip(out, plain, strict=True):
        assert ours.dtype == (torch.float32 if name in LOSSES else wanted or first)
        torch.testing.assert_close(ours, other, rtol=0, atol=0, equal_nan=True)
    for grad, other, place in zip(grads, expected, call.differentiable, strict=True):
        assert grad.dtype == leaves[place].dtype
        torch.testing.assert_close(grad, other.to(grad.dtype), rtol=0, atol=0)


def test_norms_equal_those_of_pytorch_on_a_gpu() -> None:
    """There `F.rms_norm` is float32 under autocast, and the sum of branch and residual has the promoted dtype."""
    branch, stream, weight = torch.randn(3, 8).to(LOW), torch.randn(3, 8), torch.randn(8)
    with torch.autocast("cpu", dtype=LOW):
        normed, summed = add_rms_norm(branch, stream, weight, eps=1e-6)
        alone = rms_norm(branch, weight, eps=1e-6)
    assert torch.equal(summed, branch + stream)
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(branch + stream, (8,), weight, 1e-6))
    torch.testing.assert_close(alone, torch.nn.functional.rms_norm(branch.float(), (8,), weight, 1e-6))


@needs_native
def test_registered_ops_are_cast_by_the_same_rules() -> None:
    q, k = torch.randn(4, 2, 16), torch.randn(4, 2, 16).to(LOW)
    offsets = torch.tensor([0, 4])
    ops = torch.ops.slap_fast
    with torch.autocast("cpu", dtype=LOW):
        out, lse = ops.varlen_attention(q, k, k, offsets, offsets, 4, 4, -1, -1, 0.25, "torch")
        rotated = ops.apply_rotary(q, k, offsets, 1, [1e4], False, "torch")
        normed, _ = ops.rms_norm(k[:, 0], q[0, 0], 1e-6, "auto")
        loss, *_ = ops.linear_cross_entropy(
            q[:, 0], k[:, 0], torch.tensor([0, 1, 2, 3]), -100, 0.0, 0.0, False, False, "torch"
        )
        sums = ops.contrastive_sums(q[:, 0], k[:, 0], torch.tensor(3.0), None, None, None, 0, "infonce", 0, "torch")
    assert (out.dtype, lse.dtype) == (LOW, torch.float32)
    assert [x.dtype for x in rotated] == [torch.float32] * 2
    assert [x.dtype for x in (normed, loss, *sums)] == [torch.float32] * 7


def test_float64_is_not_cast() -> None:
    call = CALLS["varlen_attention"]
    tensors = call.tensors(dtype=torch.float64)
    with torch.autocast("cpu", dtype=LOW):
        (out,) = as_tuple(call.run("torch", *tensors))
    assert out.dtype == torch.float64


def test_a_compiled_op_follows_autocast() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, eps=1e-6)

    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    x, weight = torch.randn(3, 8).to(LOW), torch.randn(8)
    with torch.autocast("cpu", dtype=LOW):
        assert torch.equal(compiled(x, weight), norm(x, weight))
