"""Offsets of packed items, checked before any op reads memory through them: the one place, for every op and backend.

Neighbors are compared, never subtracted in their own type: a difference that wraps around could pass for a length.
"""

from __future__ import annotations

from itertools import pairwise
from operator import sub

import torch
from torch import Tensor

_DTYPES = (torch.int32, torch.int64)
# Up to so many offsets Python compares a list faster than PyTorch launches its operators.
_FEW = 256


def checked(
    name: str,
    offsets: Tensor,
    total: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    of: str = "tokens",
    longest: int | None = None,
) -> Tensor:
    """`[N + 1]` offsets, int32 or int64 alike, as `dtype`.

    Args:
        name: what the caller calls them.
        offsets: rise from 0 to `total`.
        total: length of what they divide.
        device: where that lies.
        dtype: int32 or int64.
        of: what `total` counts, and lies on `device`.
        longest: upper bound of the items' lengths; None: there is none.

    Raises:
        ValueError: no tensor, or one of another shape, dtype or device; or, on the CPU, values that do not rise from 0
            to `total` or that make an item longer than `longest`. Those on a GPU are not read back, which would be a
            wait, nor are those that a compiler traces: the registered op then looks at them when it runs.
    """
    if not (
        isinstance(offsets, Tensor)
        and offsets.dtype in _DTYPES
        and offsets.dim() == 1
        and offsets.shape[0]
        and offsets.device == device
    ):
        raise ValueError(_misfit(name, offsets, device, of))
    if device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(name, offsets, total, of, longest)
    elif offsets.dtype == torch.int64 and dtype == torch.int32:
        offsets = offsets.clamp(-(2**31), 2**31 - 1)  # what is too large must not become what is not
    return offsets if offsets.dtype == dtype else offsets.to(dtype)


def _misfit(name: str, offsets: object, device: torch.device, of: str) -> str:
    """Why they are no vector of integers on `device`."""
    if not isinstance(offsets, Tensor):
        return f"{name} is a {type(offsets).__name__}; pass a torch tensor of [N + 1] int32 or int64 offsets"
    if offsets.dtype not in _DTYPES or offsets.dim() != 1 or not offsets.shape[0]:
        return f"{name} is {offsets.dtype} of shape {tuple(offsets.shape)}; pass [N + 1] int32 or int64 offsets"
    return f"{name} is on {offsets.device}, the {of} on {device}; move one to the other"


def check_values(name: str, offsets: Tensor, total: int, of: str, longest: int | None = None) -> None:
    """Raise the ValueError for `[N + 1]` offsets in CPU memory that do not rise from 0 to `total`."""
    if offsets.shape[0] <= _FEW:
        values = offsets.tolist()
        first, last = values[0], values[-1]
        rises = sorted(values) == values
    else:
        first, last = int(offsets[0]), int(offsets[-1])
        rises = not bool((offsets[1:] < offsets[:-1]).any())
    if first != 0 or last != total:
        raise ValueError(f"{name} runs from {first} to {last}; it must run from 0 to the {total} {of}")
    if not rises:
        values = offsets.tolist()
        item, begin, end = next((i, a, b) for i, (a, b) in enumerate(pairwise(values)) if b < a)
        raise ValueError(f"{name} falls from {begin} to {end} at item {item}; offsets must not decrease")
    if longest is None or offsets.shape[0] == 1:
        return
    # All lie between 0 and the total by now: no difference wraps around.
    largest = max(map(sub, values[1:], values)) if offsets.shape[0] <= _FEW else int(offsets.diff().max())
    if largest > longest:
        item = int((offsets.diff() > longest).nonzero()[0])
        raise ValueError(
            f"item {item} of {name} has length {int(offsets[item + 1] - offsets[item])}; it must be at most "
            f"{name.replace('cu_seqlens', 'max_seqlen')} ({longest})"
        )


def item_of_each(offsets: Tensor, total: int) -> Tensor:
    """`[total]` int64: the item that each position belongs to, by `[N + 1]` offsets.

    Not by `torch.repeat_interleave(..., output_size=total)`: it trusts its caller, and writes beyond its result where
    offsets are not what they should be. Here every value is that of an item, whatever offsets on a GPU are.
    """
    positions = torch.arange(total, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:].contiguous(), positions, right=True).clamp_max(offsets.shape[0] - 2)


def bounded(offsets: Tensor, total: int) -> Tensor:
    """Those on a GPU, made to rise between 0 and `total` for kernels that trust them; on the CPU they were checked."""
    return offsets if offsets.device.type == "cpu" else offsets.clamp(0, total).cummax(0).values
