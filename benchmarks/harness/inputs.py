"""Random inputs that are the same at every call."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(seed: int, *shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, generated in float32 and on the GPU if `device` is one: a CPU would take seconds."""
    place = device if device.startswith("cuda") else "cpu"
    generator = torch.Generator(place).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=place).to(device, dtype)
