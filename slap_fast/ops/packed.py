"""Where the items of a packed batch begin and end, known on the host and on the device alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils import _pytree

from slap_fast.ops.offsets import item_of_each


@dataclass(frozen=True)
class PackedLayout:
    """N variable-length items laid end to end along the first dimension of a tensor.

    The lengths stay on the host, so `total` and `max_seqlen` never cost a device synchronisation.

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
        """Lay out items of `lengths`.

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
        # Built on the host first: a list goes to the device in one copy.
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
        """Layouts of `count` consecutive items each, the last of what is left; each starts at 0.

        Raises:
            ValueError: `count` is not positive.
        """
        if count < 1:
            raise ValueError(f"count is {count}; a part needs at least 1 item")
        parts, offset = [], 0
        for first in range(0, len(self), count):
            lengths = self.lengths[first : first + count]
            parts.append(PackedLayout(lengths, self.cu_seqlens[first : first + len(lengths) + 1] - offset))
            offset += sum(lengths)
        return parts

    def segment_ids(self) -> Tensor:
        """`[total]` int64: the item that each position belongs to."""
        return item_of_each(self.cu_seqlens, self.total)


# Lengths are leaves: in an exported program they may change from call to call.
_pytree.register_dataclass(PackedLayout, serialized_type_name="slap_fast.ops.packed.PackedLayout")
