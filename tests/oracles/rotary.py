"""Rotary embedding reference: channel pairs as complex numbers, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, lengths: list[int], tokens_per_frame: int | None, thetas: tuple[float, ...]) -> Tensor:
    """`[T, H, D]` float64 to the same, rotated by each token's position in its sequence."""
    rotated = []
    for token, (_, position) in enumerate((clip, i) for clip, length in enumerate(lengths) for i in range(length)):
        positions = [position] if tokens_per_frame is None else [*divmod(position, tokens_per_frame)]
        channels = x.shape[2] // len(positions)
        parts = []
        for axis, (place, theta) in enumerate(zip(positions, thetas, strict=True)):
            part = x[token, :, axis * channels : (axis + 1) * channels]
            pairs = torch.complex(part[:, : channels // 2], part[:, channels // 2 :])
            angle = place * theta ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
            rotated_pairs = pairs * torch.polar(torch.ones_like(angle), angle)
            parts += [rotated_pairs.real, rotated_pairs.imag]
        rotated.append(torch.cat(parts, dim=1))
    return torch.stack(rotated) if rotated else x.clone()
