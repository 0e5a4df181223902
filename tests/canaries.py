"""Tensors inside larger buffers of sentinel values: a kernel that writes outside its output overwrites a sentinel."""

from __future__ import annotations

import math

from torch import Tensor

_SENTINEL = -1234.0  # exact in every floating-point dtype that kernels take
_MIN_MARGIN = 1024  # elements


class Guarded:
    """A copy of a tensor with sentinels before and after it in memory.

    Args:
        values: what to copy.
        sentinel: value of the elements around it; NaN also shows in the results of a kernel that reads them.
        margin: elements on each side; None: at least 1,024, and as many as `values` has.

    Attributes:
        tensor: contiguous, shape and values of the given one. What a kernel gets.
    """

    def __init__(self, values: Tensor, *, sentinel: float = _SENTINEL, margin: int | None = None) -> None:
        self._sentinel, size = sentinel, values.numel()
        self._margin = max(_MIN_MARGIN, size) if margin is None else margin
        self._buffer = values.new_full((2 * self._margin + size,), sentinel)
        self.tensor = self._buffer[self._margin : self._margin + size].view(values.shape)
        self.tensor.copy_(values)

    def assert_untouched_around(self) -> None:
        """Raise AssertionError if a sentinel has changed."""
        for name, margin in (("before", self._buffer[: self._margin]), ("after", self._buffer[-self._margin :])):
            kept = margin.isnan() if math.isnan(self._sentinel) else margin == self._sentinel
            changed = (~kept).nonzero().flatten().tolist()
            assert not changed, f"{len(changed)} elements {name} the tensor were written, the first at {changed[0]}"
