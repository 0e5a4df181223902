"""RMSNorm reference (arXiv 1910.07467, equation 4), one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`[T, W]` and `[W]` float64."""
    rows = [row / (row.dot(row) / row.numel() + eps) ** 0.5 * weight for row in x]
    return torch.stack(rows) if rows else x.clone()
