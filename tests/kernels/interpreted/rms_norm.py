"""Triton kernels in the interpreter. Alone: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted/rms_norm.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast.kernels import rms_norm as kernels
from slap_fast.ops import add_rms_norm, rms_norm

# Without bfloat16: the interpreter truncates to it instead of rounding.
DTYPES = [torch.float32, torch.float16]


def _results(dtype: torch.dtype, rows: int, width: int, backend: str) -> list[Tensor]:
    """Norms with and without a residual, the sum, and the gradients of all inputs."""
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, width)] * 2 + [(width,)] + [(rows, width)] * 3
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if backend == "exact":
        tensors, backend = [tensor.double() for tensor in tensors], "torch"
    x, residual, weight = (tensor.requires_grad_() for tensor in tensors[:3])
    normed, summed = add_rms_norm(x, residual, weight, eps=1e-3, backend=backend)
    results = [normed, summed, rms_norm(residual, weight, eps=1e-3, backend=backend)]
    return [*results, *torch.autograd.grad(results, (x, residual, weight), tensors[3:])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(5, 768), (70, 12), (1, 1), (4, 2049)])
def test_as_exact_as_pytorch(rows: int, width: int, dtype: torch.dtype) -> None:
    kinds = [_results(dtype, rows, width, backend) for backend in ("triton", "torch", "exact")]
    for ours, theirs, exact in zip(*kinds, strict=True):
        errors = [(value.double() - exact).norm() for value in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps / 4 * exact.norm()


def test_one_program_sums_over_several_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BACKWARD_PROGRAMS", 2)
    for ours, exact in zip(
        _results(torch.float32, 37, 500, "triton"), _results(torch.float32, 37, 500, "exact"), strict=True
    ):
        assert (ours - exact).norm() <= 1e-6 * exact.norm()


def test_no_rows() -> None:
    *rows, grad_weight = _results(torch.float32, 0, 16, "triton")
    assert all(value.shape == (0, 16) for value in rows)
    assert torch.equal(grad_weight, torch.zeros(16))
