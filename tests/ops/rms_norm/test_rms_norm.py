from __future__ import annotations

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.ops import add_rms_norm, rms_norm
from tests.ops._native import BACKENDS
from tests.oracles.rms_norm import rms_norm as oracle
from tests.tolerance import assert_as_exact_as

EPS = 1e-3
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def _inputs(dtype=torch.float64, *, rows=7, width=12):
    generator = torch.Generator().manual_seed(3)
    shapes = (rows, width), (rows, width), (width,)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def _compilable(backend):
    """The most exact dtype that the backend takes."""
    return torch.float32 if backend == "native" else torch.float64


@each_backend
def test_values_and_gradients_equal_the_oracle(backend):
    inputs = _inputs(_compilable(backend))

    def by_oracle(x, residual, weight):
        return oracle(x + residual, weight, EPS), x + residual

    def results(function, dtype, count):
        """The first `count` results, and the gradients of their random weighting."""
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        out = function(*leaves)[:count]
        grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(dtype) for i, x in enumerate(out)]
        return [*out, *torch.autograd.grad(out, leaves, grads)]

    for count in (1, 2):
        ours = results(functools.partial(add_rms_norm, eps=EPS, backend=backend), inputs[0].dtype, count)
        peers, exact = (results(by_oracle, dtype, count) for dtype in (inputs[0].dtype, torch.float64))
        assert_as_exact_as(ours, peers, exact)


@each_backend
def test_rms_norm_equals_add_rms_norm_with_a_residual_of_zeros(backend):
    x, _, weight = (x.requires_grad_() for x in _inputs(_compilable(backend)))
    results = [
        rms_norm(x, weight, eps=EPS, backend=backend),
        add_rms_norm(x, torch.zeros_like(x), weight, eps=EPS, backend=backend)[0],
    ]
    gradients = [torch.autograd.grad(result.cos().sum(), (x, weight)) for result in results]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@each_backend
def test_gradients_when_only_the_sum_is_used(backend):
    x, residual, weight = (x.requires_grad_() for x in _inputs(_compilable(backend)))
    _, summed = add_rms_norm(x, residual, weight, eps=EPS, backend=backend)
    grads = torch.autograd.grad(summed.sum(), (x, residual, weight), allow_unused=True, materialize_grads=True)
    for grad, value in zip(grads, (1.0, 1.0, 0.0), strict=True):
        assert torch.equal(grad, torch.full_like(grad, value))


def test_gradcheck():
    x, residual, weight = (x.requires_grad_() for x in _inputs(rows=3, width=5))
    assert torch.autograd.gradcheck(lambda *inputs: add_rms_norm(*inputs, eps=EPS), (x, residual, weight))


@each_backend
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (8,), (2, 3, 8), (1, 1)])
def test_any_number_of_rows_in_any_shape_and_strides(shape, backend):
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)
    x, residual = whole[..., ::2].requires_grad_(), whole.detach()[..., shape[-1] :].requires_grad_()
    weight = torch.randn(2 * shape[-1], generator=generator)[::2].requires_grad_()
    results = add_rms_norm(x, residual, weight, eps=EPS, backend=backend)
    grads = torch.autograd.grad([result.sum() for result in results], (x, residual, weight))  # strides of 0
    rows = [t.detach().reshape(-1, shape[-1]).contiguous().requires_grad_() for t in (x, residual)]
    weight = weight.detach().contiguous().requires_grad_()
    expected = add_rms_norm(*rows, weight, eps=EPS, backend="torch")
    expected_grads = torch.autograd.grad([result.sum() for result in expected], (*rows, weight))
    for actual, wanted in zip((*results, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(actual.reshape(wanted.shape), wanted)
    assert [result.shape for result in results] == [x.shape, x.shape]


@pytest.mark.parametrize("native", [BACKENDS[0]])
def test_opcheck_also_for_strided_views(native):
    x, residual, weight = _inputs(torch.float32)
    x = x.mT.contiguous().mT
    ops = torch.ops.slap_fast
    torch.library.opcheck(ops.rms_norm, (x.requires_grad_(), weight.requires_grad_(), EPS, native))
    torch.library.opcheck(ops.add_rms_norm, (x, residual.requires_grad_(), weight, EPS, native))
    x, residual, weight = (tensor.detach() for tensor in (x, residual, weight))
    torch.library.opcheck(ops.rms_norm_backward, (x, weight, torch.ones(len(x)), x, residual, native))


@each_backend
def test_compiles_to_one_graph_once_for_changing_lengths(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def block(x, residual, weight):
        normed, x = add_rms_norm(x, residual, weight, eps=EPS, backend=backend)
        normed, _ = add_rms_norm(normed.sin(), x, weight, eps=EPS, backend=backend)
        return rms_norm(normed.cos(), weight, eps=EPS, backend=backend)

    compiled = torch.compile(block, fullgraph=True, backend=counter, dynamic=True)
    counts = set()
    for rows in (5, 9, 70):
        results = []
        for call in (block, compiled):
            inputs = [x.requires_grad_() for x in _inputs(_compilable(backend), rows=rows)]
            out = call(*inputs)
            results.append([out.detach(), *torch.autograd.grad(out.cos().sum(), inputs)])
        torch.testing.assert_close(results[1], results[0])
        counts.add(counter.frame_count)
    assert len(counts) == 1, "changing lengths recompiled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": torch.zeros(7, 6)}, r"residual is \(7, 6\)"),
        ({"residual": torch.zeros(7, 12)}, r"residual is .*float32"),
        ({"weight": torch.ones(6)}, r"shapes \(7, 12\), \(6,\)"),
        ({"weight": torch.ones(12)}, r"weight is .*float32"),
        ({"eps": -1.0}, "eps is -1"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_bad_input_is_named(change, message):
    x, residual, weight = _inputs()
    arguments = {"x": x, "residual": residual, "weight": weight, "eps": EPS} | change
    with pytest.raises(ValueError, match=message):
        add_rms_norm(**arguments)


def test_integer_tensors_are_rejected():
    with pytest.raises(ValueError, match="floating-point"):
        rms_norm(torch.zeros(3, 4, dtype=torch.int64), torch.ones(4, dtype=torch.int64), eps=EPS)
