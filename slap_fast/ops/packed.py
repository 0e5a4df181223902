"""Packed batches: `PackedLayout`, and the one validation of `cu_seqlens` offsets that every op uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub

import torch
from torch import Tensor
from torch.utils import _pytree

_DTYPES = (torch.int32, torch.int64)
# Up to this many offsets, Python compares a list faster than PyTorch launches its operators.
_FEW = 256


@dataclass(frozen=True)
class PackedLayout:
    """N variable-length items packed end to end along the first dimension of a tensor.

    The lengths are kept on the host too, so `total` and `max_seqlen` need no device synchronization.

    Attributes:
        lengths: N non-negative lengths.
        cu_seqlens: `[N + 1]` cumulative lengths from 0 to `total`; int32 for frames and tokens, int64 for samples.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.int32,
    ) -> PackedLayout:
        """The layout of items of `lengths`.

        Raises:
            ValueError: a length is negative, or the total does not fit `dtype`.
        """
        host_lengths = tuple(int(length) for length in lengths)
        for item, length in enumerate(host_lengths):
            if length < 0:
                raise ValueError(f"lengths[{item}] is {length}; a length cannot be negative")
        offsets = [0, *accumulate(host_lengths)]
        if offsets[-1] > torch.iinfo(dtype).max:
            raise ValueError(f"the total length {offsets[-1]} does not fit {dtype}; pass dtype=torch.int64")
        # Built on the host first, for a single copy to the device.
        cu_seqlens = torch.tensor(offsets, dtype=dtype)
        return cls(host_lengths, cu_seqlens.to(device, non_blocking=True))

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def max_seqlen(self) -> int:
        return max(self.lengths, default=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedLayout:
        return PackedLayout(self.lengths, self.cu_seqlens.to(device, non_blocking=non_blocking))

    def split(self, count: int) -> list[PackedLayout]:
        """Layouts of `count` consecutive items each, fewer in the last; each starts at 0.

        Raises:
            ValueError: `count` is not positive.
        """
        if count < 1:
            raise ValueError(f"count is {count}; pass at least 1")
        parts, offset = [], 0
        for first in range(0, len(self), count):
            lengths = self.lengths[first : first + count]
            parts.append(PackedLayout(lengths, self.cu_seqlens[first : first + len(lengths) + 1] - offset))
            offset += sum(lengths)
        return parts

    def segment_ids(self) -> Tensor:
        """`[total]` int64: index of the item that each position belongs to."""
        return item_of_each(self.cu_seqlens, self.total)


# Exported programs store these names: the public ones, which stay when this file is moved.
PackedLayout.__module__ = "slap_fast.ops"
# Lengths are pytree leaves: in an exported program they may change from call to call.
_pytree.register_dataclass(PackedLayout, serialized_type_name="slap_fast.ops.PackedLayout")
torch.serialization.add_safe_globals([PackedLayout])  # `torch.export.load` reads its example inputs by `weights_only`


def checked_offsets(
    name: str,
    offsets: Tensor,
    total: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    of: str = "tokens",
    longest: int | None = None,
) -> Tensor:
    """Validate `[N + 1]` int32 or int64 offsets and return them as `dtype`.

    Values on a GPU are not read back: that would be a synchronization. Values are not checked under a compiler either:
    the registered op checks them when it runs.

    Args:
        name: of the argument, for messages.
        offsets: must rise from 0 to `total`.
        total: length of the packed dimension.
        device: device of the packed tensor.
        dtype: int32 or int64.
        of: unit that `total` counts, for messages.
        longest: upper bound of the items' lengths; None: unbounded.

    Raises:
        ValueError: not a tensor, or a wrong shape, dtype or device; on the CPU also values that do not rise from 0 to
            `total`, or an item longer than `longest`.
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
        check_offset_values(name, offsets, total, of, longest)
    elif offsets.dtype == torch.int64 and dtype == torch.int32:
        offsets = offsets.clamp(-(2**31), 2**31 - 1)  # a value that does not fit int32 must not wrap into a valid one
    return offsets if offsets.dtype == dtype else offsets.to(dtype)


def _misfit(name: str, offsets: object, device: torch.device, of: str) -> str:
    """Why `offsets` are not a vector of integers on `device`."""
    if not isinstance(offsets, Tensor):
        return f"{name} is a {type(offsets).__name__}; pass a torch tensor of [N + 1] int32 or int64 offsets"
    if offsets.dtype not in _DTYPES or offsets.dim() != 1 or not offsets.shape[0]:
        return f"{name} is {offsets.dtype} of shape {tuple(offsets.shape)}; pass [N + 1] int32 or int64 offsets"
    return f"{name} is on {offsets.device}, the {of} on {device}; move one to the other"


def check_offset_values(name: str, offsets: Tensor, total: int, of: str, longest: int | None = None) -> None:
    """Raise ValueError unless `[N + 1]` offsets in CPU memory rise from 0 to `total`.

    Neighbors are compared, not subtracted: a difference that wraps around could pass for a length.
    """
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
    # All values are in [0, total] by now: no difference wraps around.
    largest = max(map(sub, values[1:], values)) if offsets.shape[0] <= _FEW else int(offsets.diff().max())
    if largest > longest:
        item = int((offsets.diff() > longest).nonzero()[0])
        raise ValueError(
            f"item {item} of {name} has length {int(offsets[item + 1] - offsets[item])}; it must be at most "
            f"{name.replace('cu_seqlens', 'max_seqlen')} ({longest})"
        )


def item_of_each(offsets: Tensor, total: int) -> Tensor:
    """`[total]` int64: index of the item that each position belongs to, from `[N + 1]` offsets.

    `torch.repeat_interleave(..., output_size=total)` would write out of bounds for malformed offsets. Here every value
    is the index of an item, even for malformed offsets on a GPU.
    """
    positions = torch.arange(total, device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:].contiguous(), positions, right=True).clamp_max(offsets.shape[0] - 2)


def bounded_offsets(offsets: Tensor, total: int) -> Tensor:
    """Offsets on a GPU, forced to rise within [0, total] for kernels that trust them; on the CPU they were checked."""
    return offsets if offsets.device.type == "cpu" else offsets.clamp(0, total).cummax(0).values
