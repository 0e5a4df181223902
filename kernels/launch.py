"""Shared by all launchers: the current device of a launch, and compute capability."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the device of `tensor` current: Triton launches on the current device, not on that of the tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; for the interpreter, which has none, that of Hopper."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
