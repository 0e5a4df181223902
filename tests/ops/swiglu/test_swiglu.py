from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import swiglu
from tests.ops._native import BACKENDS, instruction_sets, native_code, needs_native
from tests.oracles.swiglu import swiglu as oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_instruction_set = pytest.mark.parametrize("isa", instruction_sets())


def _numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def _both_ways(function, gate_up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    gate_up = gate_up.detach().requires_grad_()
    out = function(gate_up)
    return out.detach(), torch.autograd.grad(out, gate_up, grad.to(out.dtype))[0]


def test_values_and_gradients_equal_the_oracle():
    gate_up, grad = _numbers(3, 5, 14), _numbers(3, 5, 7, seed=1)
    torch.testing.assert_close(_both_ways(swiglu, gate_up, grad), _both_ways(oracle, gate_up, grad))


def test_gradcheck():
    assert torch.autograd.gradcheck(swiglu, _numbers(4, 6).requires_grad_())


@needs_native
@each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 16, 33, 100])
def test_native_code_is_as_exact_as_pytorch(isa, dtype, width):
    gate_up, grad = _numbers(50, 2 * width, dtype=dtype), _numbers(50, width, dtype=dtype, seed=1)
    exact = _both_ways(oracle, gate_up.double(), grad.double())
    pytorch = _both_ways(lambda x: swiglu(x, backend="torch"), gate_up, grad)
    with native_code(isa=isa):
        actual = _both_ways(lambda x: swiglu(x, backend="native"), gate_up, grad)
    for one, other, expected in zip(actual, pytorch, exact, strict=True):
        assert one.dtype == dtype
        allowed = 2 * (other - expected).abs().max() + torch.finfo(dtype).eps * expected.abs().max()
        assert (one - expected).abs().max() <= allowed


@needs_native
@each_instruction_set
def test_relative_precision_holds_for_gates_of_any_magnitude(isa):
    gate = torch.cat([torch.linspace(-86, 86, 4001), torch.logspace(-40, 38, 500), -torch.logspace(-40, 1.9, 500)])
    gate_up = torch.stack([gate, torch.ones_like(gate)], dim=1)
    with native_code(isa=isa):
        actual = swiglu(gate_up, backend="native")
    torch.testing.assert_close(actual.double(), oracle(gate_up.double()), rtol=5e-7, atol=1e-44)


@needs_native
@each_instruction_set
def test_extreme_gates_saturate(isa):
    gate_up = torch.tensor([[1e30, 2.0], [-1e30, 2.0], [torch.inf, 2.0], [torch.nan, 2.0], [2.0, torch.nan]])
    with native_code(isa=isa):
        out, grad = _both_ways(lambda x: swiglu(x, backend="native"), gate_up, torch.ones(5, 1))
    assert torch.equal(out[:3, 0], torch.tensor([2e30, 0.0, torch.inf]))
    assert out[3:].isnan().all()
    assert torch.equal(grad[:2], torch.tensor([[2.0, 1e30], [0.0, 0.0]]))


@needs_native
@each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_neither_threads_nor_other_rows(isa, dtype):
    gate_up, grad = _numbers(700, 2 * 203, dtype=dtype), _numbers(700, 203, dtype=dtype, seed=1)
    run = lambda rows: _both_ways(lambda x: swiglu(x, backend="native"), gate_up[rows], grad[rows])  # noqa: E731
    with native_code(isa=isa, threads=1):
        alone = [torch.cat(parts) for parts in zip(run(slice(0, 333)), run(slice(333, 700)), strict=True)]
    for threads in (1, 2, 5):
        with native_code(isa=isa, threads=threads):
            assert all(map(torch.equal, run(slice(None)), alone))


@each_backend
def test_strided_input_and_expanded_gradients(backend):
    dtype = torch.float32
    gate_up = _numbers(14, 10, dtype=dtype).t()
    grad = _numbers(1, 7, dtype=dtype).expand(10, 7)
    actual = _both_ways(lambda x: swiglu(x, backend=backend), gate_up, grad)
    expected = _both_ways(oracle, gate_up.double(), grad)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@each_backend
def test_empty_input_gives_empty_output(backend):
    for shape in ((0, 8), (5, 0)):
        out, grad = _both_ways(lambda x: swiglu(x, backend=backend), torch.zeros(shape), torch.zeros(shape)[:, ::2])
        assert out.shape == (shape[0], shape[1] // 2)
        assert grad.shape == shape


@needs_native
def test_opcheck():
    gate_up = _numbers(5, 6, dtype=torch.float32)
    torch.library.opcheck(torch.ops.slap_fast.swiglu, (gate_up.clone().requires_grad_(), "native"))
    torch.library.opcheck(torch.ops.slap_fast.swiglu_backward, (gate_up, gate_up[:, :3], "native"))


@each_backend
def test_compiles_to_one_graph_once_for_changing_lengths(backend):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: swiglu(x * 2, backend=backend) + 1, fullgraph=True, backend=counter, dynamic=True
    )
    for rows in (5, 9, 17):
        gate_up, grad = _numbers(rows, 12, dtype=torch.float32), _numbers(rows, 6, seed=1)
        expected = _both_ways(lambda x: swiglu(x * 2, backend=backend) + 1, gate_up, grad)
        torch.testing.assert_close(_both_ways(compiled, gate_up, grad), expected)
    assert counter.frame_count == 1, "changing lengths recompiled"


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(4, 5), r"shape \(4, 5\); pass \[\.\.\., 2 \* M\]"),
        (torch.zeros(()), r"shape \(\)"),
        (torch.zeros(4, 6, dtype=torch.int32), "int32"),
    ],
)
def test_bad_input_is_named(gate_up, message):
    with pytest.raises(ValueError, match=message):
        swiglu(gate_up)


@needs_native
@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(4, 6, dtype=torch.float64), r"gate_up is torch\.float64; native code takes"),
        (torch.zeros(4, 6, device="meta"), "on meta"),
    ],
)
def test_what_native_code_cannot_serve_is_named(gate_up, message):
    with pytest.raises(ValueError, match=message):
        swiglu(gate_up, backend="native")


@needs_native
def test_native_code_rejects_negative_sizes():
    module = native.require()
    for rows, width in ((-1, 4), (4, -1)):
        with pytest.raises(ValueError, match="cannot be negative"):
            module.swiglu(dtype="float32", rows=rows, width=width, gate_up=0, out=0, threads=1)
        with pytest.raises(ValueError, match="cannot be negative"):
            module.swiglu_backward(
                dtype="float32", rows=rows, width=width, grad=0, gate_up=0, grad_gate_up=0, threads=1
            )
