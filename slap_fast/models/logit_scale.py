"""Learned temperature of the contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _ClampMax(torch.autograd.Function):
    """min(x, maximum) that, at or above the maximum, passes only gradients whose descent step decreases x."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, maximum: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.maximum = maximum  # type: ignore[attr-defined]
        return x.clamp_max(maximum)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0].masked_fill((x >= ctx.maximum) & (grads[0] < 0), 0.0), None  # type: ignore[attr-defined]


class LogitScale(nn.Module):
    """exp(initial + delta), at most exp(maximum) (CLIP, section 2.5).

    The parameter is the difference from the initial value, which bfloat16 resolves finely near zero. It has one
    dimension because ZeRO cannot partition a scalar.
    """

    def __init__(self, initial: float, maximum: float) -> None:
        super().__init__()
        self.initial = initial
        self.maximum = maximum
        self.delta = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """`[1]` float32 multiplier of cosine similarities."""
        return _ClampMax.apply(self.initial + self.delta.float(), self.maximum).exp()
