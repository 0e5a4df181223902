"""What every launcher asks: which device the tensors are on, and what it can do."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever device the tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; that of Hopper for the interpreter, which has none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
