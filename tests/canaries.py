"""Tensors inside larger buffers of sentinel values: a kernel that writes outside its output overwrites a sentinel."""

from __future__ import annotations

from torch import Tensor

_SENTINEL = -1234.0  # exact in every floating-point dtype that kernels take
_LEAST_MARGIN = 1024  # elements


class Guarded:
    """A copy of a tensor with sentinels before and after it in memory.

    Attributes:
        tensor: contiguous, shape and values of the given one. What a kernel gets.
    """

    def __init__(self, values: Tensor) -> None:
        self._size = values.numel()
        self._margin = max(_LEAST_MARGIN, self._size)
        self._buffer = values.new_full((2 * self._margin + self._size,), _SENTINEL)
        self.tensor = self._buffer[self._margin : self._margin + self._size].view(values.shape)
        self.tensor.copy_(values)

    def assert_untouched_around(self) -> None:
        """Raise AssertionError if a sentinel has changed."""
        for name, margin in (("before", self._buffer[: self._margin]), ("after", self._buffer[-self._margin :])):
            changed = (margin != _SENTINEL).nonzero().flatten().tolist()
            assert not changed, f"{len(changed)} elements {name} the tensor were written, the first at {changed[0]}"
