"""PyTorch backend, any device and dtype: plain operations, which autograd differentiates and the compiler fuses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`."""
    return F.linear(x, weight, bias)
