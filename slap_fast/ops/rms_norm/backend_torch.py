"""PyTorch backend, any device and dtype: plain operations, which autograd differentiates and the compiler fuses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`[..., W]` and `[W]` to `[..., W]`."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalized sum and the sum."""
    summed = x + residual
    return rms_norm(summed, weight, eps), summed
