"""PyTorch backend, any device and floating-point dtype: the angles of the batch are one small table."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.packed import item_of_each
from slap_fast.ops.rotary.call import Angles
from slap_fast.ops.tensor_checks import accumulator


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def rotate(q: Tensor, k: Tensor, angles: Angles, inverse: bool, out_q: Tensor, out_k: Tensor) -> None:
    """See `Backend.rotate`. Angles are float32 (float64 for float64), so late positions lose precision."""
    cos, sin = _cos_sin(angles, q.shape[0], q.shape[2], accumulator(q.dtype))
    if inverse:
        sin = -sin
    _rotate(q, cos, sin, out_q)
    _rotate(k, cos, sin, out_k)


def _cos_sin(angles: Angles, total: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the angles, `[T, 1, axes, head_dim / axes / 2]`."""
    offsets, thetas = angles.cu_seqlens.long(), angles.thetas
    position = torch.arange(total, device=offsets.device) - offsets[item_of_each(offsets, total)]
    frame = angles.tokens_per_frame
    positions = [position] if len(thetas) == 1 else [position // frame, position % frame]
    channels = head_dim // len(thetas)
    exponent = torch.arange(0, channels, 2, device=offsets.device, dtype=torch.float64) / channels
    per_axis = [
        axis[:, None].to(dtype) * (theta**-exponent).to(dtype) for axis, theta in zip(positions, thetas, strict=True)
    ]
    angle = torch.stack(per_axis, dim=1).unsqueeze(1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    axes = cos.shape[2]
    pairs = x.unflatten(2, (axes, 2, -1))  # [T, H, axes, 2, channels / 2]
    first, second = (half.to(cos.dtype) for half in pairs.unbind(3))
    # Compute both before writing either: `out` may be `x`.
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    halves = out.unflatten(2, (axes, 2, -1))
    halves[:, :, :, 0] = rotated_first
    halves[:, :, :, 1] = rotated_second
