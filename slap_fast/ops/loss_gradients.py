"""Autograd for losses whose forward pass computes the gradients too, while it has the scores at hand.

Such a loss is a scalar: the backward pass only multiplies the saved gradients by the incoming one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.tensor_checks import accumulator

# On CPUs `torch.mul` into another dtype makes a temporary copy of its input: parts keep that copy small.
_PARTS = 16


def needs_grad(x: Tensor) -> bool:
    """Whether a backward may ask for the gradient of `x`."""
    return torch.is_grad_enabled() and x.requires_grad


def empty_gradient(x: Tensor, needed: bool) -> Tensor:
    """Uninitialized memory for the gradient by `x`, of shape `[0]` if it is not needed.

    In float32 at least: float16 gradients would underflow before the loss scale is applied, and any 16-bit gradient
    would be rounded twice.
    """
    return x.new_empty(x.shape if needed else (0,), dtype=accumulator(x.dtype))


def _check_scale(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, torch.dtype]:
    if not gradient.dim() or not gradient.dtype.is_floating_point or not dtype.is_floating_point:
        raise ValueError(
            f"gradient is {gradient.dtype} of shape {tuple(gradient.shape)}, for {dtype}; pass floating-point [N, ...]"
        )
    if factor.numel() != 1 or not factor.dtype.is_floating_point or factor.device != gradient.device:
        raise ValueError(
            f"factor is {factor.dtype} of shape {tuple(factor.shape)} on {factor.device}; pass one floating-point "
            f"number on {gradient.device}"
        )
    return gradient, factor.reshape(()), dtype


@custom_op("slap_fast::scale_gradient", check=_check_scale)
def _scale_gradient(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`gradient * factor`, rounded once to `dtype`, without a copy of the whole gradient."""
    scaled = torch.empty_like(gradient, dtype=dtype)
    parts = 1 if gradient.dtype == dtype or not gradient.shape[0] else min(gradient.shape[0], _PARTS)
    for part, target in zip(gradient.chunk(parts), scaled.chunk(parts), strict=True):
        torch.mul(part, factor, out=target)
    return scaled


@_scale_gradient.register_fake
def _(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def register_autograd(op: Any, names: Sequence[str]) -> None:
    """Register the backward of `op`, which takes a NamedTuple first and returns `(loss, *gradients)`.

    Args:
        op: a `custom_op`.
        names: the fields of the NamedTuple that the gradients belong to.
    """

    def setup_context(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
        call = inputs[0]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])
        ctx.positions = [call._fields.index(name) for name in names]
        ctx.dtypes = [getattr(call, name).dtype for name in names]

    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for position, gradient, dtype in zip(ctx.positions, ctx.saved_tensors, ctx.dtypes, strict=True):
            if grad is not None and ctx.needs_input_grad[position]:
                grads[position] = _scale_gradient(gradient, grad, dtype)
        return tuple(grads)

    op.register_autograd(backward, setup_context=setup_context)
