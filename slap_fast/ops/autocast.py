"""Casting of op inputs under `torch.autocast`, by the rules of PyTorch's own ops.

Products run in the autocast dtype, norms in float32, elementwise operations on several tensors in the widest of their
dtypes. float64 and integers are not cast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Optional = TypeVar("Optional", Tensor, Tensor | None)
# (dtypes of the tensors to cast, autocast dtype) -> dtype to cast to.
Rule = Callable[[list[torch.dtype], torch.dtype], torch.dtype]

_DEVICES = ("cpu", "cuda")
_CAST = (torch.float32, torch.float16, torch.bfloat16)


def low(_dtypes: list[torch.dtype], autocast_dtype: torch.dtype) -> torch.dtype:
    """The autocast dtype: for attention, and for losses that begin with a matrix product."""
    return autocast_dtype


def full(_dtypes: list[torch.dtype], _autocast_dtype: torch.dtype) -> torch.dtype:
    """float32: for norms and spectra."""
    return torch.float32


def widest(dtypes: list[torch.dtype], _autocast_dtype: torch.dtype) -> torch.dtype:
    """The promoted dtype: float16 with bfloat16 gives float32."""
    return functools.reduce(torch.promote_types, dtypes)


def cast(rule: Rule, *tensors: Optional) -> tuple[Optional, ...]:
    """The tensors cast by `rule`; unchanged unless autocast is enabled on their device.

    Raises:
        ValueError: an argument is not a tensor.
    """
    for x in tensors:
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"an argument is a {type(x).__name__}; pass a torch tensor")
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
