"""The gate of a SwiGLU MLP, `silu(gate) * up`, from the one projection that holds both (arXiv 2002.05202).

    hidden = swiglu(gate_up)    # [..., 2 * M] -> [..., M]

Each pass reads its inputs once and writes its output once. For the backward pass `gate_up` alone is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast import native
from slap_fast.ops import dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.swiglu import backend_native as swiglu_native
from slap_fast.ops.swiglu import backend_triton as swiglu_triton
from slap_fast.ops.tensor_checks import require

_FORWARD: dict[str, Callable[[Tensor, Tensor], None]] = {  # (gate_up, out)
    "native": swiglu_native.forward,
    "triton": swiglu_triton.forward,
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {  # (grad, gate_up, grad_gate_up)
    "native": swiglu_native.backward,
    "triton": swiglu_triton.backward,
}
dispatch.register(
    "swiglu",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=swiglu_native.rejects),
        dispatch.Backend("triton", unavailable=swiglu_triton.unavailable, rejects=swiglu_triton.rejects),
        # Not one of the tables above: PyTorch differentiates its own operations, and its compiler fuses them.
        dispatch.Backend("torch"),
    ],
)


def _select(gate_up: Tensor, backend: str) -> str:
    if not isinstance(gate_up, Tensor):
        raise ValueError(f"gate_up is a {type(gate_up).__name__}; pass a torch tensor")
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up has shape {tuple(gate_up.shape)}; pass [..., 2 * M]")
    if not gate_up.dtype.is_floating_point:
        raise ValueError(f"gate_up is {gate_up.dtype}; pass a floating-point dtype")
    return dispatch.select("swiglu", backend, device=gate_up.device, dtype=gate_up.dtype)


def _check(gate_up: Tensor, backend: str) -> tuple:
    return gate_up, _registered(gate_up, backend)


def _registered(gate_up: Tensor, backend: str) -> str:
    chosen = _select(gate_up, backend)
    if chosen == "torch":
        raise ValueError('backend "torch" is no part of the registered op; call slap_fast.ops.swiglu')
    return chosen


def _check_backward(grad: Tensor, gate_up: Tensor, backend: str) -> tuple:
    chosen = _registered(gate_up, backend)
    require("grad", grad, (*gate_up.shape[:-1], gate_up.shape[-1] // 2), gate_up.dtype, gate_up.device)
    return grad, gate_up, chosen


@custom_op("slap_fast::swiglu", check=_check)
def _swiglu(gate_up: Tensor, backend: str) -> Tensor:
    out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    _FORWARD[backend](gate_up, out)
    return out


@_swiglu.register_fake
def _(gate_up: Tensor, backend: str) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@custom_op("slap_fast::swiglu_backward", check=_check_backward)
def _swiglu_backward(grad: Tensor, gate_up: Tensor, backend: str) -> Tensor:
    grad_gate_up = gate_up.new_empty(gate_up.shape)
    _BACKWARD[backend](grad, gate_up, grad_gate_up)
    return grad_gate_up


@_swiglu_backward.register_fake
def _(grad: Tensor, gate_up: Tensor, backend: str) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    gate_up, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(gate_up)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return _swiglu_backward(grad, gate_up, ctx.backend), None  # type: ignore[attr-defined]


_swiglu.register_autograd(_backward, setup_context=_setup_context)


def swiglu(gate_up: Tensor, *, backend: str = "auto") -> Tensor:
    """`silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.

    Args:
        gate_up: `[..., 2 * M]` floating point, any strides: the gate, then what it lets through.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[..., M]` of the dtype of `gate_up`, contiguous. Native code and Triton compute in float32 and round once.

    Raises:
        ValueError: an odd last dimension, another dtype, or a backend that cannot serve.
    """
    chosen = _select(gate_up, backend)
    if chosen in ("torch", "auto"):  # an exported program has what runs anywhere
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _swiglu(gate_up, chosen)
