"""Random inputs, the same at every call."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(seed: int, *shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers of deviation 1, drawn in float32: on a GPU there, since a host takes seconds for
    what a step reads in a millisecond."""
    where = device if device.startswith("cuda") else "cpu"
    generator = torch.Generator(where).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=where).to(device, dtype)
