from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import linear
from tests.ops._native import BACKENDS, instruction_sets, native_code, needs_native
from tests.oracles.linear import linear as oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VECTORS = [isa for isa in instruction_sets() if isa != "baseline"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_instruction_set = pytest.mark.parametrize("isa", VECTORS)
multiplies = pytest.mark.skipif(native.isa() in (None, "baseline"), reason="PyTorch serves and does not guarantee it")
# One row, column and summed value; the edges of a micro-kernel; more than one packed block in each dimension.
SHAPES = [(1, 1, 1), (1, 40, 7), (7, 1, 40), (13, 49, 33), (97, 130, 800)]


def _numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _inputs(rows: int, columns: int, depth: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """`x`, `weight`, `bias` and the gradient of the result."""
    shapes = [(rows, depth), (columns, depth), (columns,), (rows, columns)]
    return [_numbers(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def _both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result, and the gradients of `x`, `weight` and `bias`."""
    *leaves, grad = (tensor.detach() for tensor in inputs)
    out = function(*(leaf.requires_grad_() for leaf in leaves))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def test_values_and_gradients_equal_the_oracle() -> None:
    for shape in SHAPES[:-1]:
        inputs = _inputs(*shape)
        torch.testing.assert_close(_both_ways(linear, *inputs), _both_ways(oracle, *inputs))
    assert torch.autograd.gradcheck(linear, [x.requires_grad_() for x in _inputs(3, 4, 5)[:3]])


@needs_native
@each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_code_is_as_exact_as_pytorch(isa: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    inputs = _inputs(*shape, dtype)
    exact = _both_ways(torch.nn.functional.linear, *(x.double() for x in inputs))
    pytorch = _both_ways(lambda *x: linear(*x, backend="torch"), *inputs)
    with native_code(isa=isa):
        actual = _both_ways(lambda *x: linear(*x, backend="native"), *inputs)
    for one, other, expected in zip(actual, pytorch, exact, strict=True):
        assert one.dtype == dtype
        allowed = 2 * (other - expected).norm() + torch.finfo(dtype).eps * expected.norm()
        assert (one - expected).norm() <= allowed


@multiplies
@each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_a_row_depend_on_neither_other_rows_nor_threads(isa: str, dtype: torch.dtype) -> None:
    x, weight, bias, grad = _inputs(301, 333, 900, dtype)

    def run(rows: slice) -> list[Tensor]:
        return _both_ways(lambda *leaves: linear(*leaves, backend="native"), x[rows], weight, bias, grad[rows])

    with native_code(isa=isa, threads=1):
        alone = [run(slice(*ends)) for ends in ((0, 1), (1, 14), (14, 301))]
        together = run(slice(None))
    for place in range(2):  # the result and the gradient of x have rows
        assert torch.equal(together[place], torch.cat([parts[place] for parts in alone]))
    for threads in (2, 5):
        with native_code(isa=isa, threads=threads):
            assert all(map(torch.equal, run(slice(None)), together))


@each_backend
def test_any_strides_and_leading_dimensions(backend: str) -> None:
    x = _numbers(6, 5, 8, dtype=torch.float32).permute(1, 2, 0)  # [5, 8, 6]
    weight = _numbers(6, 7, dtype=torch.float32, seed=1).t()
    bias = _numbers(14, dtype=torch.float32, seed=2)[::2]
    grad = _numbers(1, 1, 7, dtype=torch.float32, seed=3).expand(5, 8, 7)
    actual = _both_ways(lambda *leaves: linear(*leaves, backend=backend), x, weight, bias, grad)
    expected = _both_ways(oracle, x.double(), weight.double(), bias.double(), grad)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    vector = linear(x[0, 0], weight, bias, backend=backend)
    torch.testing.assert_close(vector, actual[0][0, 0])


@each_backend
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)], ids=str)
def test_sizes_of_zero(backend: str, shape: tuple[int, int, int]) -> None:
    inputs = _inputs(*shape, torch.float32)
    actual = _both_ways(lambda *leaves: linear(*leaves, backend=backend), *inputs)
    torch.testing.assert_close(actual, _both_ways(torch.nn.functional.linear, *inputs))


@each_backend
def test_only_the_gradients_that_are_needed_are_computed(backend: str) -> None:
    x, weight, bias, grad = _inputs(5, 6, 7, torch.float32)
    for wanted in (x, weight, bias):
        wanted.requires_grad_()
        (alone,) = torch.autograd.grad(linear(x, weight, bias, backend=backend), wanted, grad)
        wanted.requires_grad_(False)
        assert alone.shape == wanted.shape


@needs_native
def test_a_bias_is_added_before_the_result_is_rounded() -> None:
    x, weight, bias, _ = _inputs(50, 60, 70, torch.bfloat16)
    bias *= 100
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    error = (linear(x, weight, bias, backend="native").double() - expected).abs()
    assert (error <= 0.51 * torch.finfo(torch.bfloat16).eps * expected.abs() + 1e-4).all()


@needs_native
def test_opcheck() -> None:
    x, weight, bias, _ = _inputs(5, 6, 7, torch.float32)
    for leaves in ((x, weight, bias), (x.view(5, 1, 7), weight, None)):
        copies = [None if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]
        torch.library.opcheck(torch.ops.slap_fast.linear, (*copies, "native"))


@each_backend
def test_compiles_to_one_graph_once_for_changing_lengths(backend: str) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(x * 2, weight, bias, backend=backend) + 1

    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for rows in (5, 9, 17):
        inputs = _inputs(rows, 6, 8, torch.float32)
        torch.testing.assert_close(_both_ways(compiled, *inputs), _both_ways(layer, *inputs))
    assert counter.frame_count == 1, "changing lengths recompiled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 5)}, r"shapes \(4, 5\) and \(2, 3\)"),
        ({"x": torch.zeros(())}, r"shapes \(\) and"),
        ({"weight": torch.zeros(3)}, r"and \(3,\)"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\); pass \[2\]"),
        ({"weight": torch.zeros(2, 3).double()}, r"x is torch.float32 on cpu and weight is torch.float64"),
        ({"bias": torch.zeros(2, device="meta")}, r"bias is torch.float32 on meta"),
        ({"x": torch.zeros(4, 3).int()}, "int32"),
        ({"x": [[1.0, 2.0, 3.0]]}, "list"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(**({"x": torch.zeros(4, 3), "weight": torch.zeros(2, 3)} | change))  # type: ignore[arg-type]


@needs_native
def test_what_native_code_cannot_serve_is_named() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x is torch\.float64; native code takes"):
        linear(x, x, backend="native")
    with pytest.raises(ValueError, match="on meta"):
        linear(x.to("meta").float(), x.to("meta").float(), backend="native")
