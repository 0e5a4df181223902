"""Gate of a SwiGLU MLP, `silu(gate) * up`, computed from one projection that holds both (arXiv 2002.05202).

    hidden = swiglu(gate_up)    # [..., 2 * M] -> [..., M]

Forward and backward each read their inputs once and write their output once. Only `gate_up` is saved for backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.swiglu import backend_native, backend_torch, backend_triton
from slap_fast.ops.swiglu.call import Backend, check, check_backward, select, validate

# Backends of the registered op, in order of preference. PyTorch's is not a registered op: autograd differentiates its
# operations, and the compiler fuses them.
BACKENDS: dict[str, Backend] = {"native": backend_native, "triton": backend_triton}
dispatch.register(
    "swiglu",
    [
        *(dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()),
        dispatch.Backend("torch", backend_torch.unavailable, backend_torch.rejects),
    ],
)


@custom_op("slap_fast::swiglu", check=check)
def _swiglu(gate_up: Tensor, backend: str) -> Tensor:
    out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    BACKENDS[backend].forward(gate_up, out)
    return out


@_swiglu.register_fake
def _(gate_up: Tensor, backend: str) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@custom_op("slap_fast::swiglu_backward", check=check_backward)
def _swiglu_backward(gate_up: Tensor, grad: Tensor, backend: str) -> Tensor:
    grad_gate_up = gate_up.new_empty(gate_up.shape)
    BACKENDS[backend].backward(gate_up, grad, grad_gate_up)
    return grad_gate_up


@_swiglu_backward.register_fake
def _(gate_up: Tensor, grad: Tensor, backend: str) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    gate_up, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(gate_up)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    (gate_up,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return _swiglu_backward(gate_up, grad, ctx.backend), None  # type: ignore[attr-defined]


_swiglu.register_autograd(_backward, setup_context=_setup_context)


def swiglu(gate_up: Tensor, *, backend: str = "auto") -> Tensor:
    """`silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.

    Args:
        gate_up: `[..., 2 * M]` floating point, any strides: gate first, then up.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `[..., M]` of the dtype of `gate_up`, contiguous. Native code and Triton compute in float32 and round once.

    Raises:
        ValueError: an odd last dimension, a dtype that is not floating point, or a backend that cannot serve.
    """
    chosen = select(validate(gate_up), backend)
    # An exported program may run anywhere: "auto" stays "auto" while it is traced.
    return backend_torch.swiglu(gate_up) if chosen in ("torch", "auto") else _swiglu(gate_up, chosen)
