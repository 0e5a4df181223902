"""Linear layer: `x @ weight.T + bias`, as `torch.nn.functional.linear`.

    y = linear(x, weight, bias)    # [..., K], [N, K], [N] -> [..., N]

Native code sums in float32, also 16-bit values, and rounds once. Each row of the result has the same bits whatever the
other rows are, and whatever the number of threads: clips can be packed without a change of their embeddings. PyTorch's
products have neither property.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.linear import backend_native, backend_torch
from slap_fast.ops.linear.call import Backend, check, select, validate

# Backends of the registered op, in order of preference. PyTorch's is not a registered op: autograd differentiates its
# operations, and the compiler fuses them.
BACKENDS: dict[str, Backend] = {"native": backend_native}
dispatch.register(
    "linear",
    [
        *(dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()),
        dispatch.Backend("torch", backend_torch.unavailable, backend_torch.rejects),
    ],
)


def _matrix(x: Tensor) -> Tensor:
    """`[..., W]` as `[T, W]`."""
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


@custom_op("slap_fast::linear", check=check, rule=autocast.low)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return BACKENDS[backend].forward(_matrix(x), weight, bias).view(*x.shape[:-1], weight.shape[0])


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.has_bias = bias is not None  # type: ignore[attr-defined]
    ctx.save_for_backward(x, weight)


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    backend = ctx.backend  # type: ignore[attr-defined]
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad[:4]  # type: ignore[attr-defined]
    rows = _matrix(grad)  # [T, N]
    grad_x = _linear(grad, weight.t(), None, backend) if needs_x else None
    grad_weight = _linear(rows.t(), _matrix(x).t(), None, backend) if needs_weight else None
    grad_bias = rows.sum(0) if ctx.has_bias and needs_bias else None  # type: ignore[attr-defined]
    return grad_x, grad_weight, grad_bias, None


_linear.register_autograd(_backward, setup_context=_setup_context)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: `[..., K]` floating point, any strides.
        weight: `[N, K]` of the dtype of `x`.
        bias: `[N]` of the same dtype; None: without.
        backend: "auto", or a name that `slap-fast info` lists. Under autocast, tensors are cast to its dtype.

    Returns:
        `[..., N]` of the dtype of `x`, contiguous.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a backend that cannot serve.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    x, weight, *given = autocast.cast(autocast.low, *tensors)
    bias = given[0] if given else None
    validate(x, weight, bias)
    chosen = select(x, backend)
    # An exported program may run anywhere: "auto" stays "auto" while it is traced.
    return backend_torch.linear(x, weight, bias) if chosen in ("torch", "auto") else _linear(x, weight, bias, chosen)
