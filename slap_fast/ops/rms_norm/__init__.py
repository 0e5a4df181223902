"""RMSNorm, alone or of a residual sum: the norm before each branch of a pre-norm transformer block.

    normed = rms_norm(x, weight, eps=1e-6)
    normed, x = add_rms_norm(branch, x, weight, eps=1e-6)    # branch + x and its norm, in one pass

`x * weight / sqrt(mean(x**2) + eps)` over the last dimension (arXiv 1910.07467). Forward reads each input once and
writes each output once. The sum and one float32 per row are saved for backward, which computes the gradients of the sum
and of the weight in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.rms_norm import backend_native, backend_torch, backend_triton
from slap_fast.ops.rms_norm.call import (
    Backend,
    BackwardCall,
    ForwardCall,
    check,
    check_add,
    check_backward,
    select,
    validate,
)

# Backends of the registered ops, in order of preference. PyTorch's is not a registered op: autograd differentiates its
# operations, and the compiler fuses them.
BACKENDS: dict[str, Backend] = {"native": backend_native, "triton": backend_triton}
dispatch.register(
    "rms_norm",
    [
        *(dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()),
        dispatch.Backend("torch", backend_torch.unavailable, backend_torch.rejects),
    ],
)


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    """`normed` `[..., W]` and `rstd` `[...]` float32, the reciprocal root mean square of each row."""
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@custom_op("slap_fast::rms_norm", check=check, rule=autocast.full)
def _rms_norm(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    normed, rstd = _empty(x)
    BACKENDS[backend].forward(ForwardCall(x, None, weight, eps), None, normed, rstd)
    return normed, rstd


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return _empty(x)


@custom_op("slap_fast::add_rms_norm", check=check_add, rule=autocast.full)
def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    summed = x.new_empty(x.shape)
    normed, rstd = _empty(x)
    BACKENDS[backend].forward(ForwardCall(x, residual, weight, eps), summed, normed, rstd)
    return normed, summed, rstd


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    normed, rstd = _empty(x)
    return normed, x.new_empty(x.shape), rstd


@custom_op("slap_fast::rms_norm_backward", check=check_backward)
def _rms_norm_backward(call: BackwardCall, backend: str) -> tuple[Tensor, Tensor]:
    grad, grad_weight = call.summed.new_empty(call.summed.shape), call.weight.new_empty(call.weight.shape)
    BACKENDS[backend].backward(call, grad, grad_weight)
    return grad, grad_weight


@_rms_norm_backward.register_fake
def _(call: BackwardCall, backend: str) -> tuple[Tensor, Tensor]:
    return call.summed.new_empty(call.summed.shape), call.weight.new_empty(call.weight.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.backend = inputs  # type: ignore[attr-defined]
    _, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(x, weight, rstd)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_normed: Tensor, _: object) -> tuple[Tensor | None, ...]:
    summed, weight, rstd = ctx.saved_tensors  # type: ignore[attr-defined]
    call = BackwardCall(summed, weight, rstd, grad_normed, None)
    grad, grad_weight = _rms_norm_backward(call, ctx.backend)  # type: ignore[attr-defined]
    return grad, grad_weight, None, None


def _setup_add_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]
) -> None:
    *_, weight, _, ctx.backend = inputs  # type: ignore[attr-defined]
    _, summed, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(summed, weight, rstd)


def _add_backward(
    ctx: torch.autograd.function.FunctionCtx, grad_normed: Tensor | None, grad_summed: Tensor | None, _: object
) -> tuple[Tensor | None, ...]:
    grad, grad_weight = grad_summed, None
    if grad_normed is not None:
        summed, weight, rstd = ctx.saved_tensors  # type: ignore[attr-defined]
        call = BackwardCall(summed, weight, rstd, grad_normed, grad_summed)
        grad, grad_weight = _rms_norm_backward(call, ctx.backend)  # type: ignore[attr-defined]
    return grad, grad, grad_weight, None, None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)
_add_rms_norm.register_autograd(_add_backward, setup_context=_setup_add_context)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, backend: str = "auto") -> Tensor:
    """Divide each row by its root mean square and scale its channels.

    Args:
        x: `[..., W]` floating point, any strides.
        weight: `[W]`, dtype and device of `x`. Autocast casts both to float32, as for `F.rms_norm` on a GPU.
        eps: added to the mean square; at least 0.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `[..., W]` of the dtype of `x`, contiguous. Sums and products are float32 (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a negative `eps`, or a backend that cannot serve.
    """
    x, weight = autocast.cast(autocast.full, x, weight)
    validate(x, None, weight, eps)
    chosen = select(x, backend)
    # An exported program may run anywhere: "auto" stays "auto" while it is traced.
    if chosen in ("torch", "auto"):
        return backend_torch.rms_norm(x, weight, eps)
    return _rms_norm(x, weight, eps, chosen)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The sum of two tensors, and its `rms_norm`.

    Args:
        x: `[..., W]` floating point, any strides: the output of a branch.
        residual: shape, dtype and device of `x`: the residual stream.
        weight: as for `rms_norm`.
        eps: as for `rms_norm`.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        The normalized sum and the sum, both `[..., W]` and contiguous. The sum is rounded to the dtype of `x` before
        it is normalized, as in `x + residual`.

    Raises:
        ValueError: as for `rms_norm`.
    """
    x, residual, weight = autocast.cast(autocast.full, x, residual, weight)
    validate(x, residual, weight, eps)
    chosen = select(x, backend)
    if chosen in ("torch", "auto"):
        return backend_torch.add_rms_norm(x, residual, weight, eps)
    return _add_rms_norm(x, residual, weight, eps, chosen)[:2]
