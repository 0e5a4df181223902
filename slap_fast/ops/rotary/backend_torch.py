"""Rotary embedding in plain PyTorch: any device and floating-point type; the angles of a batch are one small table."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.packed import item_of_each


def rotate(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    tokens_per_frame: int,
    thetas: list[float],
    inverse: bool,
    out_q: Tensor,
    out_k: Tensor,
) -> None:
    """Write the rotated `q` and `k` to `out_q` and `out_k`, which may be the same tensors. Angles are in float32."""
    cos, sin = _rotation(cu_seqlens, q.shape[0], q.shape[2], tokens_per_frame, thetas, q.dtype)
    if inverse:
        sin = -sin
    _rotate(q, cos, sin, out_q)
    _rotate(k, cos, sin, out_k)


def _rotation(
    cu_seqlens: Tensor, total: int, head_dim: int, tokens_per_frame: int, thetas: list[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of `[T, 1, axes, head_dim / axes / 2]` angles, in float32 (float64 for float64)."""
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    offsets = cu_seqlens.long()
    position = torch.arange(total, device=cu_seqlens.device) - offsets[item_of_each(offsets, total)]
    positions = [position] if len(thetas) == 1 else [position // tokens_per_frame, position % tokens_per_frame]
    channels = head_dim // len(thetas)
    exponent = torch.arange(0, channels, 2, device=cu_seqlens.device, dtype=torch.float64) / channels
    angles = [
        axis[:, None].to(precise) * (theta**-exponent).to(precise)
        for axis, theta in zip(positions, thetas, strict=True)
    ]
    angle = torch.stack(angles, dim=1).unsqueeze(1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    axes = cos.shape[2]
    pairs = x.unflatten(2, (axes, 2, -1))  # [T, H, axes, 2, channels / 2]
    first, second = (half.to(cos.dtype) for half in pairs.unbind(3))
    # Both before either is written: `out` may be `x`.
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin
    halves = out.unflatten(2, (axes, 2, -1))
    halves[:, :, :, 0] = turned_first
    halves[:, :, :, 1] = turned_second
