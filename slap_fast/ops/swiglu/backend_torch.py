"""PyTorch backend, any device and dtype: plain operations, which autograd differentiates and the compiler fuses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., 2 * M]`; rounds the gate to its dtype before the product."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
