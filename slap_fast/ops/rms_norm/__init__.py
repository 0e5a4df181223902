"""RMSNorm, alone or of the sum of two tensors: what stands before each branch of a pre-norm transformer block.

    normed = rms_norm(x, weight, eps=1e-6)
    normed, x = add_rms_norm(branch, x, weight, eps=1e-6)    # x + branch, and its norm, in one pass

`x * weight / sqrt(mean(x**2) + eps)` over the last dimension (arXiv 1910.07467). Forward, each input is read and each
output written once. For the backward pass the sum is kept, and one number a row: the gradients of the sum and of the
weight take one pass too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast import native
from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.rms_norm import backend_native as rms_norm_native
from slap_fast.ops.rms_norm import backend_triton as rms_norm_triton
from slap_fast.ops.tensor_checks import require, require_like

# (x, residual, weight, eps, summed, normed, rstd): writes the last three, `summed` only where there is a residual.
_FORWARD: dict[str, Callable[[Tensor, Tensor | None, Tensor, float, Tensor | None, Tensor, Tensor], None]] = {
    "native": rms_norm_native.forward,
    "triton": rms_norm_triton.forward,
}
# (grad_normed, grad_summed, summed, weight, rstd, grad, grad_weight): writes the last two.
_BACKWARD: dict[str, Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor], None]] = {
    "native": rms_norm_native.backward,
    "triton": rms_norm_triton.backward,
}
dispatch.register(
    "rms_norm",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=rms_norm_native.rejects),
        dispatch.Backend("triton", unavailable=rms_norm_triton.unavailable, rejects=rms_norm_triton.rejects),
        # Not one of the tables above: PyTorch differentiates its own operations, and its compiler fuses them.
        dispatch.Backend("torch"),
    ],
)


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized rows, and the reciprocal root mean square of each in float32."""
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _registered(x: Tensor, weight: Tensor, eps: float, backend: str) -> str:
    chosen = _select(x, weight, eps, backend)
    if chosen == "torch":
        raise ValueError('backend "torch" is no part of the registered op; call slap_fast.ops.rms_norm')
    return chosen


def _check(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple:
    return x, weight, eps, _registered(x, weight, eps, backend)


def _check_add(x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str) -> tuple:
    require_like("residual", residual, x)
    return x, residual, weight, eps, _registered(x, weight, eps, backend)


def _check_backward(
    grad_normed: Tensor, grad_summed: Tensor | None, summed: Tensor, weight: Tensor, rstd: Tensor, backend: str
) -> tuple:
    chosen = _registered(summed, weight, 0.0, backend)
    require_like("grad_normed", grad_normed, summed)
    if grad_summed is not None:
        require_like("grad_summed", grad_summed, summed)
    require("rstd", rstd, summed.shape[:-1], torch.float32, summed.device)
    return grad_normed, grad_summed, summed, weight, rstd.contiguous(), chosen


@custom_op("slap_fast::rms_norm", check=_check, rule=autocast.full)
def _rms_norm(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    normed, rstd = _empty(x)
    _FORWARD[backend](x, None, weight, eps, None, normed, rstd)
    return normed, rstd


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return _empty(x)


@custom_op("slap_fast::add_rms_norm", check=_check_add, rule=autocast.full)
def _add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    summed = x.new_empty(x.shape)
    normed, rstd = _empty(x)
    _FORWARD[backend](x, residual, weight, eps, summed, normed, rstd)
    return normed, summed, rstd


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    normed, rstd = _empty(x)
    return normed, x.new_empty(x.shape), rstd


@custom_op("slap_fast::rms_norm_backward", check=_check_backward)
def _rms_norm_backward(
    grad_normed: Tensor, grad_summed: Tensor | None, summed: Tensor, weight: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    grad, grad_weight = summed.new_empty(summed.shape), weight.new_empty(weight.shape)
    _BACKWARD[backend](grad_normed, grad_summed, summed, weight, rstd, grad, grad_weight)
    return grad, grad_weight


@_rms_norm_backward.register_fake
def _(
    grad_normed: Tensor, grad_summed: Tensor | None, summed: Tensor, weight: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return summed.new_empty(summed.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.backend = inputs  # type: ignore[attr-defined]
    _, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(x, weight, rstd)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_normed: Tensor, _: object) -> tuple[Tensor | None, ...]:
    x, weight, rstd = ctx.saved_tensors  # type: ignore[attr-defined]
    grad, grad_weight = _rms_norm_backward(grad_normed, None, x, weight, rstd, ctx.backend)  # type: ignore[attr-defined]
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
        grad, grad_weight = _rms_norm_backward(grad_normed, grad_summed, summed, weight, rstd, ctx.backend)  # type: ignore[attr-defined]
    return grad, grad, grad_weight, None, None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)
_add_rms_norm.register_autograd(_add_backward, setup_context=_setup_add_context)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, backend: str = "auto") -> Tensor:
    """Divide each row by the root of its mean square, and scale its channels.

    Args:
        x: `[..., W]` floating point, any strides.
        weight: `[W]`, dtype and device of `x`; under autocast both are taken in float32, as by `F.rms_norm` on a GPU.
        eps: added to the mean square; not negative.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[..., W]` of the dtype of `x`, contiguous. Sums and products are float32 (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a negative `eps`, or a backend that cannot serve.
    """
    x, weight = autocast.cast(autocast.full, x, weight)
    chosen = _select(x, weight, eps, backend)
    if chosen in ("torch", "auto"):  # an exported program has what runs anywhere
        return F.rms_norm(x, weight.shape, weight, eps)
    return _rms_norm(x, weight, eps, chosen)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The sum of two tensors, and its `rms_norm`.

    Args:
        x: `[..., W]` floating point, any strides: what a branch of a block returned.
        residual: as `x`: what stands beside the branch.
        weight: as for `rms_norm`.
        eps: as for `rms_norm`.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        The normalized sum and the sum, both `[..., W]` and contiguous. The sum is rounded to the dtype of `x` before
        it is normalized, as in `x + residual`.

    Raises:
        ValueError: as for `rms_norm`.
    """
    x, residual, weight = autocast.cast(autocast.full, x, residual, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(f"x is {_described(x)} and residual is {_described(residual)}; pass two alike")
    chosen = _select(x, weight, eps, backend)
    if chosen in ("torch", "auto"):
        summed = x + residual
        return F.rms_norm(summed, weight.shape, weight, eps), summed
    return _add_rms_norm(x, residual, weight, eps, chosen)[:2]


def _select(x: Tensor, weight: Tensor, eps: float, backend: str) -> str:
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x and weight have shapes {tuple(x.shape)}, {tuple(weight.shape)}; pass [..., W] and [W]")
    if not x.dtype.is_floating_point or weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"x is {_described(x)} and weight is {_described(weight)}; pass one floating-point dtype and one device"
        )
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it cannot be negative")
    return dispatch.select("rms_norm", backend, device=x.device, dtype=x.dtype, width=x.shape[-1])


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"
