"""What `torch.autocast` does to the inputs of an op, as to those of PyTorch's own: products in the low type, norms in
float32, elementwise operations on several tensors in the widest of their types. Float64 and integers stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Optional = TypeVar("Optional", Tensor, Tensor | None)
# From the dtypes of the tensors to be cast, and autocast's own, to the one that they get.
Rule = Callable[[list[torch.dtype], torch.dtype], torch.dtype]

_DEVICES = ("cpu", "cuda")
_CAST = (torch.float32, torch.float16, torch.bfloat16)


def low(_dtypes: list[torch.dtype], own: torch.dtype) -> torch.dtype:
    """The type of the region: for attention and for losses that begin with a product."""
    return own


def full(_dtypes: list[torch.dtype], _own: torch.dtype) -> torch.dtype:
    """Float32: for norms and spectra."""
    return torch.float32


def widest(dtypes: list[torch.dtype], _own: torch.dtype) -> torch.dtype:
    """That of their sum; float16 and bfloat16 meet in float32."""
    return functools.reduce(torch.promote_types, dtypes)


def cast(rule: Rule, *tensors: Optional) -> tuple[Optional, ...]:
    """The tensors as an op that follows `rule` gets them: themselves where no autocast is at work on their device.

    Raises:
        ValueError: one is no tensor.
    """
    for x in tensors:
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"a {type(x).__name__} is given where a tensor is taken; pass a torch tensor")
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device = next(x.device.type for x in tensors if x is not None)
    if device not in _DEVICES or not torch.is_autocast_enabled(device):
        return tensors
    dtypes = [x.dtype for x in tensors if x is not None and x.dtype in _CAST]
    if not dtypes:
        return tensors
    dtype = rule(dtypes, torch.get_autocast_dtype(device))
    return tuple(x.to(dtype) if x is not None and x.dtype in _CAST else x for x in tensors)
