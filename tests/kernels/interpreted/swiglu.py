"""Triton kernels in the interpreter. Alone: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted/swiglu.py`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from slap_fast.ops import swiglu
from slap_fast.ops.swiglu import backend_triton
from tests.oracles.swiglu import swiglu as oracle

# Without bfloat16: the interpreter truncates to it instead of rounding.
DTYPES = [torch.float32, torch.float16]


def _numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _both_ways(function, gate_up: Tensor, grad: Tensor) -> list[Tensor]:
    gate_up = gate_up.detach().requires_grad_()
    out = function(gate_up)
    return [out.detach(), *torch.autograd.grad(out, gate_up, grad.to(out.dtype))]


def _assert_as_exact_as_pytorch(gate_up: Tensor, grad: Tensor) -> None:
    """The outputs hold NaN before the kernels write to them."""
    ours = [gate_up.new_full(grad.shape, math.nan), gate_up.new_full(gate_up.shape, math.nan)]
    backend_triton.forward(gate_up, ours[0])
    backend_triton.backward(gate_up, grad, ours[1])
    theirs = _both_ways(lambda x: swiglu(x, backend="torch"), gate_up, grad)
    exact = _both_ways(oracle, gate_up.double(), grad.double())
    for one, other, wanted in zip(ours, theirs, exact, strict=True):
        error, allowed = ((value.double() - wanted).norm() for value in (one, other))
        assert error <= 2 * allowed + torch.finfo(gate_up.dtype).eps / 4 * wanted.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (70, 12), (9, 257), (3, 768)])
def test_as_exact_as_pytorch(rows: int, width: int, dtype: torch.dtype) -> None:
    _assert_as_exact_as_pytorch(_numbers(rows, 2 * width, dtype=dtype), _numbers(rows, width, dtype=dtype, seed=1))


def test_slices_of_a_wider_tensor_and_expanded_gradients_are_read_without_a_copy() -> None:
    gate_up, grad = _numbers(2, 5, 100)[..., 7:63], _numbers(28).expand(2, 5, 28)
    assert backend_triton._rows(gate_up).data_ptr() == gate_up.data_ptr()
    assert backend_triton._rows(grad).data_ptr() == grad.data_ptr()
    _assert_as_exact_as_pytorch(gate_up, grad)
    _assert_as_exact_as_pytorch(_numbers(56, 10).t(), _numbers(28, 1).t().expand(10, 28))


def test_extreme_gates_saturate() -> None:
    gate_up = torch.tensor([[1e30, 2.0], [-1e30, 2.0], [torch.inf, 2.0], [torch.nan, 2.0], [2.0, torch.nan]])
    out, grad = _both_ways(lambda x: swiglu(x, backend="triton"), gate_up, torch.ones(5, 1))
    assert torch.equal(out[:3, 0], torch.tensor([2e30, 0.0, torch.inf]))
    assert out[3:].isnan().all()
    assert torch.equal(grad[:2], torch.tensor([[2.0, 1e30], [0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(0, 8), (5, 0)])
def test_empty_input_gives_empty_output(shape: tuple[int, int]) -> None:
    out, grad = _both_ways(lambda x: swiglu(x, backend="triton"), torch.zeros(shape), torch.zeros(shape)[:, ::2])
    assert out.shape == (shape[0], shape[1] // 2)
    assert grad.shape == shape
