from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast import native
from slap_fast.ops import add_rms_norm
from slap_fast.ops.rms_norm import backend_native
from slap_fast.ops.rms_norm.call import BackwardCall, ForwardCall
from tests.ops._native import native_code, needs_native

pytestmark = needs_native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def _tensors(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """`x`, `residual`, the gradients of norm and sum, and `weight`."""
    generator = torch.Generator().manual_seed(width)
    tensors = [torch.randn(rows, width, generator=generator).to(dtype) for _ in range(4)]
    return [*tensors, torch.randn(width, generator=generator).to(dtype)]


def _native(x: Tensor, residual: Tensor, grad_normed: Tensor, grad_summed: Tensor, weight: Tensor) -> list[Tensor]:
    """Norm, sum, and the gradients of sum and weight, written into memory filled with NaN."""
    normed, summed, grad = (torch.full_like(x, torch.nan) for _ in range(3))
    grad_weight, rstd = torch.full_like(weight, torch.nan), torch.full((len(x),), torch.nan)
    backend_native.forward(ForwardCall(x, residual, weight, EPS), summed, normed, rstd)
    backend_native.backward(BackwardCall(summed, weight, rstd, grad_normed, grad_summed), grad, grad_weight)
    return [normed, summed, grad, grad_weight]


def _pytorch(x: Tensor, residual: Tensor, grad_normed: Tensor, grad_summed: Tensor, weight: Tensor) -> list[Tensor]:
    summed, weight = (x + residual).requires_grad_(), weight.clone().requires_grad_()
    normed = F.rms_norm(summed, weight.shape, weight, EPS)
    grads = torch.autograd.grad(normed, (summed, weight), grad_normed)
    return [normed.detach(), summed.detach(), grads[0] + grad_summed, grads[1]]


@each_dtype
@pytest.mark.parametrize("width", [1, 3, 17, 64, 100, 768])
def test_as_exact_as_pytorch(isa, dtype, width):
    tensors = _tensors(75, width, dtype)
    with native_code(isa=isa):
        actual = _native(*tensors)
    exact, pytorch = _pytorch(*(x.double() for x in tensors)), _pytorch(*tensors)
    # Terms of the weight's gradient, which cancel.
    terms = (tensors[2].double() * exact[0] / tensors[4].double()).abs().sum(0)
    for ours, theirs, wanted, summed in zip(actual, pytorch, exact, [0, 0, 0, terms.norm()], strict=True):
        errors = [(x.double() - wanted).norm() for x in (ours, theirs)]
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps / 4 * max(wanted.norm(), summed)


def test_gradient_of_the_weight_stays_accurate_over_many_rows(isa):
    x, nothing, grad_normed, grad_summed, weight = _tensors(20_000, 24, torch.float32)
    nothing.zero_()
    grad_normed = grad_normed.abs() * x.sign()  # all terms of one sign: the sums grow with the rows
    with native_code(isa=isa):
        actual = _native(x, nothing, grad_normed, grad_summed, weight)[3]
    wanted = _pytorch(*(t.double() for t in (x, nothing, grad_normed, grad_summed, weight)))[3]
    assert (actual - wanted).norm() <= 2e-7 * wanted.norm()


@each_dtype
def test_bits_depend_on_neither_threads_nor_other_rows(isa, dtype):
    tensors = _tensors(1003, 100, dtype)
    with native_code(isa=isa, threads=1):
        expected = _native(*tensors)
    for threads in (2, 5):
        with native_code(isa=isa, threads=threads):
            assert all(map(torch.equal, _native(*tensors), expected))
    *rows, weight = tensors
    with native_code(isa=isa):
        some = _native(*(x[31:97].contiguous() for x in rows), weight)
    assert all(torch.equal(part, whole[31:97]) for part, whole in zip(some[:3], expected[:3], strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e15])
def test_rows_of_any_size(isa, scale):
    """For a row of zeros eps is the whole divisor, and the gradient stays finite."""
    x, _, grad_normed, grad_summed, weight = _tensors(3, 40, torch.float32)
    tensors = x * scale, torch.zeros_like(x), grad_normed, grad_summed, weight
    with native_code(isa=isa):
        actual = _native(*tensors)
    for ours, wanted in zip(actual, _pytorch(*(t.double() for t in tensors)), strict=True):
        assert (ours - wanted).norm() <= 1e-6 * wanted.norm()


@each_dtype
def test_a_nan_stays_in_its_row(isa, dtype):
    tensors = _tensors(5, 20, dtype)
    tensors[0][2, 7] = torch.nan
    with native_code(isa=isa):
        normed, summed, grad, grad_weight = _native(*tensors)
    assert normed.isnan().any(1).tolist() == grad.isnan().any(1).tolist() == [False, False, True, False, False]
    assert normed[2].isnan().all()
    assert summed.isnan().sum() == 1
    assert grad_weight.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": -1}, "-1 rows of 4"),
        ({"width": -4}, "3 rows of -4"),
        ({"eps": -1.0}, "eps is -1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"dtype": "float64"}, "dtype 'float64'"),
    ],
)
def test_native_code_rejects_inconsistent_arguments(change, message):
    x, out, weight, rstd = torch.ones(3, 4), torch.empty(3, 4), torch.ones(4), torch.empty(3)
    arguments = {
        "dtype": "float32",
        "rows": 3,
        "width": 4,
        "x": x.data_ptr(),
        "residual": 0,
        "weight": weight.data_ptr(),
        "eps": EPS,
        "sum": 0,
        "normed": out.data_ptr(),
        "rstd": rstd.data_ptr(),
        "threads": 1,
    }
    module = native.require()
    module.rms_norm(**arguments)
    torch.testing.assert_close(out, x)
    with pytest.raises(ValueError, match=message):
        module.rms_norm(**arguments | change)


def test_an_unsupported_dtype_is_named():
    x = torch.zeros(4, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x is torch\.float64; native code takes"):
        add_rms_norm(x, x, torch.ones(8, dtype=torch.float64), eps=EPS, backend="native")
