"""The fast path of custom_op: used unless something besides autograd observes the call, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from slap_fast.ops.custom_op import CustomOp, custom_op


def _define() -> tuple[CustomOp, CustomOp, CustomOp]:
    @custom_op("slap_fast_tests::scaled")
    def scaled(x: Tensor, factor: Tensor | None, power: int) -> tuple[Tensor, Tensor]:
        y = x.detach() ** power
        return (y.clone() if factor is None else y * factor), y

    @scaled.register_fake
    def _(x: Tensor, factor: Tensor | None, power: int) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x)

    @custom_op("slap_fast_tests::scaled_backward")
    def scaled_backward(grad: Tensor, x: Tensor, factor: Tensor | None, power: int) -> Tensor:
        slope = power * x ** (power - 1) * grad
        return slope if factor is None else slope * factor

    @scaled_backward.register_fake
    def _(grad: Tensor, x: Tensor, factor: Tensor | None, power: int) -> Tensor:
        return torch.empty_like(x)

    def setup_context(ctx, inputs, output):
        x, factor, ctx.power = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, factor)

    def backward(ctx, grad, _):
        return scaled_backward(grad, *ctx.saved_tensors, ctx.power), None, None

    scaled.register_autograd(backward, setup_context=setup_context)

    @custom_op("slap_fast_tests::double_", mutates_args=("x",))
    def double_(x: Tensor) -> None:
        x.detach().mul_(2)

    return scaled, scaled_backward, double_


scaled, scaled_backward, double_ = _define()


class Spy:
    """Counts the calls that reach the registered ops."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for op in (scaled, scaled_backward, double_):
            patch.setattr(op, "_registered", self._counted(op._registered))

    def _counted(self, registered: Callable) -> Callable:
        def call(*args):
            self.calls += 1
            return registered(*args)

        return call


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def _x(requires_grad: bool = False) -> Tensor:
    return torch.tensor([1.0, 2.0, -3.0], requires_grad=requires_grad)


@pytest.mark.parametrize("around", [nullcontext, lambda: torch.autocast("cpu"), torch.no_grad, torch.inference_mode])
def test_plain_tensors_take_the_fast_path(spy: Spy, around: Callable[[], AbstractContextManager]) -> None:
    with around():
        for x in (_x(), torch.nn.Parameter(_x()), _x(requires_grad=True).detach()):
            assert torch.equal(scaled(x, None, 2)[0], torch.tensor([1.0, 4.0, 9.0]))
    assert spy.calls == 0


def test_first_gradients_take_the_fast_path(spy: Spy) -> None:
    x = _x(requires_grad=True)
    result, saved = scaled(x, torch.tensor(5.0), 3)
    assert not saved.requires_grad
    assert torch.equal(torch.autograd.grad(result.sum(), x)[0], 15 * x.detach() ** 2)
    rebuilt = checkpoint(lambda x: scaled(x, None, 3)[0], x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(rebuilt.sum(), x)[0], 3 * x.detach() ** 2)
    assert spy.calls == 0


@pytest.mark.gpu
def test_gpu_tensors_take_the_fast_path_forward_and_backward(spy: Spy) -> None:
    for x in (_x().cuda().requires_grad_(), torch.nn.Parameter(_x().cuda())):
        result, _ = scaled(x, torch.tensor(5.0, device="cuda"), 3)
        assert torch.equal(torch.autograd.grad(result.sum(), x)[0], 15 * x.detach() ** 2)
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        scaled(_x().cuda(), None, 2)
    assert spy.calls == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: scaled(_x().to("meta"), None, 2),
        lambda: scaled(_x(), torch.tensor(5.0, device="meta"), 2),
        lambda: scaled(torch.view_as_complex(torch.ones(3, 2)).conj().imag, None, 2),  # negated lazily
        lambda: scaled(_x().as_subclass(type("Subclass", (Tensor,), {})), None, 2),
        lambda: _under(FlopCounterMode(display=False), lambda: scaled(_x(), None, 2)),
        lambda: torch.jit.trace(lambda x: scaled(x, None, 2), _x(), check_trace=False),
        lambda: torch.func.grad(lambda x: scaled(x, None, 2)[0].sum())(_x()),
        lambda: _under(torch.device("cpu"), lambda: scaled(_x(), None, 2)),  # a mode too
    ],
)
def test_modes_transforms_and_tracers_see_the_registered_op(spy: Spy, call: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # function transforms do not support such an op
        call()
    assert spy.calls == 1


def _under(context: AbstractContextManager, call: Callable[[], object]) -> object:
    with context:
        return call()


class _Module(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(x, None, 2)[0]


def test_it_compiles_in_one_graph_with_the_same_gradient() -> None:
    compiled = torch.compile(lambda x: scaled(2 * x, None, 3)[0] + 1, backend="aot_eager", fullgraph=True)
    x = _x(requires_grad=True)
    assert "slap_fast_tests.scaled" in str(torch.export.export(_Module(), (_x(),)).graph)
    expected = scaled(2 * x, None, 3)[0] + 1
    actual = compiled(x)
    assert torch.equal(actual, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected)))


def test_second_gradients_and_tangents_raise() -> None:
    x = _x(requires_grad=True)
    with pytest.raises(RuntimeError, match="scaled has no second derivative"):
        torch.autograd.grad(scaled(x, None, 3)[0].sum(), x, create_graph=True)
    for primal in (x, _x()):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(primal, torch.ones(3))
            for call in (scaled, torch.ops.slap_fast_tests.scaled):
                with pytest.raises(RuntimeError, match="scaled has no forward-mode derivative"):
                    call(dual, None, 3)


def test_in_place_writes_increment_the_version_counter(spy: Spy) -> None:
    leaf = _x(requires_grad=True)
    x = leaf * 1
    kept = x.square()
    with torch.no_grad():
        double_(x)
    assert torch.equal(x.detach(), 2 * _x())
    assert spy.calls == 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()
    with torch.inference_mode():
        y = _x()
        double_(y)
    assert torch.equal(y, 2 * _x())


class _Factors(NamedTuple):
    x: Tensor
    y: Tensor


@pytest.mark.parametrize("registered", [False, True])
def test_needs_input_grad_has_the_positions_of_the_schema(registered: bool) -> None:
    needed, name = [], f"product_{'registered' if registered else 'direct'}"

    @custom_op(f"slap_fast_tests::{name}")
    def product(power: int, factors: _Factors) -> Tensor:
        return factors.x**power * factors.y

    @product.register_fake
    def _(power: int, factors: _Factors) -> Tensor:
        return torch.empty_like(factors.x)

    def setup_context(ctx, inputs, output):
        _, factors = inputs
        ctx.save_for_backward(*factors)

    def backward(ctx, grad):
        needed.append(list(ctx.needs_input_grad[:3]))
        grads = [None] * len(ctx.needs_input_grad)
        grads[2] = grad * ctx.saved_tensors[0]
        return tuple(grads)

    product.register_autograd(backward, setup_context=setup_context)
    y = _x(requires_grad=True)
    call = getattr(torch.ops.slap_fast_tests, name)
    out = call(1, _x(), y) if registered else product(1, _Factors(_x(), y))
    assert torch.equal(torch.autograd.grad(out.sum(), y)[0], _x())
    assert needed == [[False, False, True]]


def test_profilers_show_the_op_names() -> None:
    x = _x(requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        scaled(_x(), None, 2)
        scaled(x, None, 2)[0].sum().backward()
    names = [event.name for event in profile.events()]
    assert names.count("slap_fast_tests::scaled") == 2
    assert names.count("slap_fast_tests::scaled_backward") == 1
