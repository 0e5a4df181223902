"""SwiGLU gate reference: the formula."""

from __future__ import annotations

from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """`[..., 2 * M]` float64 to `[..., M]`."""
    width = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :width], gate_up[..., width:]
    return gate / (1 + (-gate).exp()) * up
