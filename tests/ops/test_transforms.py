"""Derivatives that an op lacks raise under every transform; vmap and torch.export give correct results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from slap_fast.ops import (
    MelConfig,
    PackedLayout,
    apply_rotary,
    log_mel,
    rms_norm,
    swiglu,
    varlen_attention,
)
from tests.ops._calls import CALLS, Call, as_tuple, loss_of
from tests.ops._native import BACKENDS, needs_native

# With backend="torch" these run PyTorch's own operations, which have second derivatives.
PLAIN = ("rms_norm", "add_rms_norm", "swiglu", "linear")
LINEAR = ("apply_rotary", "apply_rotary_qkv")
OPAQUE = [
    *(pytest.param(call, "native", marks=needs_native, id=f"{name}-native") for name, call in CALLS.items()),
    *(pytest.param(call, "torch", id=f"{name}-torch") for name, call in CALLS.items() if name not in PLAIN),
]
LINEAR_CALLS = [CALLS[name] for name in LINEAR]


@pytest.mark.parametrize(("call", "backend"), OPAQUE)
def test_forward_mode_derivatives_raise(call: Call, backend: str) -> None:
    tensors = tuple(call.tensors())
    for transform in (
        lambda f: torch.func.jvp(f, tensors, tensors),
        lambda f: torch.func.jacfwd(f)(*tensors),
        lambda f: torch.func.grad(lambda *x: loss_of(f(*x)))(*tensors),
        lambda f: torch.func.hessian(lambda *x: loss_of(f(*x)))(*tensors),
    ):
        with pytest.raises(RuntimeError, match=r"slap_fast::\w+ has no"):
            transform(lambda *x: call.run(backend, *x))


@pytest.mark.parametrize(("call", "backend"), OPAQUE)
def test_second_derivatives_raise(call: Call, backend: str) -> None:
    leaves = call.leaves()
    inputs = [leaves[place] for place in call.differentiable]
    loss = loss_of(call.run(backend, *leaves))
    if call in LINEAR_CALLS:
        (grad,) = torch.autograd.grad(loss, inputs[:1], create_graph=True)
        assert not grad.requires_grad  # linear op: the gradient does not depend on its input
        return
    with pytest.raises(RuntimeError, match=r"has no second derivative, .* create_graph=True"):
        torch.autograd.grad(loss, inputs, create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rotation_has_derivatives_of_any_order(backend: str) -> None:
    q, k, offsets = torch.randn(5, 2, 8, requires_grad=True), torch.randn(5, 1, 8), torch.tensor([0, 2, 5])
    rotated, _ = apply_rotary(q, k, offsets, backend=backend)
    (grad,) = torch.autograd.grad(rotated.square().sum(), q, create_graph=True)  # 2 q: the rotations cancel
    (second,) = torch.autograd.grad(grad.square().sum(), q)
    torch.testing.assert_close(second, 8 * q.detach())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("call", "backend"), OPAQUE)
def test_vmap_is_a_loop(call: Call, backend: str) -> None:
    batches = [torch.stack(pair) for pair in zip(call.tensors(seed=1), call.tensors(seed=2), strict=True)]
    mapped = as_tuple(torch.func.vmap(lambda *x: call.run(backend, *x))(*batches))
    for place in range(2):
        alone = as_tuple(call.run(backend, *(x[place] for x in batches)))
        for ours, one in zip(mapped, alone, strict=True):
            # PyTorch may sum its batched operations in another order; the ops themselves see single items.
            if backend == "torch":
                torch.testing.assert_close(ours[place], one)
            else:
                assert torch.equal(ours[place], one)


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_op_exports_without_naming_a_backend(call: Call) -> None:
    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(call.run("auto", *tensors))

    program = export(_Module(run), tuple(call.tensors(seed=1)))
    assert "native" not in str(program.graph)
    tensors = call.tensors(seed=2)
    for ours, expected in zip(program.module()(*tensors), run(*tensors), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("config", [MelConfig(), MelConfig.preset("whisper")], ids=["slap", "whisper"])
def test_log_mel_exports_for_lengths_from_one_frame(config: MelConfig) -> None:
    sizes = {0: Dim("clips", min=1, max=64), 1: Dim("samples", min=400, max=160_000)}
    module = _Module(lambda x: log_mel(x, None, config))
    program = export(module, (torch.randn(2, 16_000),), dynamic_shapes=((sizes,),))
    assert "native" not in str(program.graph)
    for shape in ((1, 400), (2, 559), (3, 560), (1, 160_000)):
        x = torch.randn(shape)
        assert torch.equal(program.module()(x), log_mel(x, None, config))


@pytest.mark.parametrize("config", [MelConfig(n_mels=8), MelConfig.preset("nemo")], ids=["local", "clipwise"])
def test_dense_clips_are_one_op_in_an_exported_program(config: MelConfig) -> None:
    x = torch.randn(2, 1000, requires_grad=True)
    op = torch.ops.slap_fast.log_mel_dense
    torch.library.opcheck(op, (x, config.serialized, "torch"))
    ours, expected = op(x, config.serialized, "auto"), log_mel(x, None, config)
    assert torch.equal(ours, expected)
    assert torch.equal(*(torch.autograd.grad(loss_of(frames), x)[0] for frames in (ours, expected)))


def test_a_packed_block_exports_for_any_lengths_without_naming_a_backend() -> None:
    weight = torch.randn(32)

    def block(x: Tensor, layout: PackedLayout) -> Tensor:
        q = rms_norm(x, weight, eps=1e-6).view(-1, 2, 16)
        q, k = apply_rotary(q, q, layout.cu_seqlens)
        return swiglu(varlen_attention(q, k, q, layout.cu_seqlens, max_seqlen_q=64).flatten(1))

    module = _Module(block)
    layout = PackedLayout.from_lengths([3, 8])
    tokens, ends = Dim("tokens", min=2, max=4096), Dim("ends", min=2, max=512)
    shapes = (({0: tokens}, [(Dim.AUTO, Dim.AUTO), {0: ends}]),)
    program = export(module, (torch.randn(11, 32), layout), dynamic_shapes=shapes)
    assert "native" not in str(program.graph)
    longer = PackedLayout((5, 9), torch.tensor([0, 5, 14], dtype=torch.int32))
    x = torch.randn(14, 32)
    torch.testing.assert_close(program.module()(x, longer), block(x, longer))


@needs_native
def test_offsets_of_a_compiled_op_are_checked_when_it_runs() -> None:
    compiled = torch.compile(
        lambda x, offsets: apply_rotary(x, x, offsets, backend="native")[0], backend="aot_eager", fullgraph=True
    )
    x = torch.randn(8, 1, 4)
    compiled(x, torch.tensor([0, 3, 5, 8]))
    with pytest.raises(ValueError, match="falls from 100000 to 5"):
        compiled(x, torch.tensor([0, 100_000, 5, 8]))
    with pytest.raises(ValueError, match=f"falls from {2**31 - 1} to 5"):  # would wrap to 0 in int32
        compiled(x, torch.tensor([0, 2**32, 5, 8]))
