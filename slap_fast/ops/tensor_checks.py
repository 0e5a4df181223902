"""What registered ops check of tensors before memory is touched: no values, so nothing that waits for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def require(name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise the ValueError unless `x` has that shape, dtype and device."""
    if x.dtype != dtype or tuple(x.shape) != tuple(shape) or x.device != device:
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)} on {x.device}; pass {dtype} of shape {tuple(shape)} on "
            f"{device}"
        )


def require_like(name: str, x: Tensor, other: Tensor) -> None:
    """`require` the shape, dtype and device of `other`."""
    require(name, x, other.shape, other.dtype, other.device)
