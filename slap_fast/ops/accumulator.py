"""What ops sum in."""

from __future__ import annotations

import torch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over `dtype` are made and kept in: float32, and float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
