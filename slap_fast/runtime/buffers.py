"""Large blocks of memory that are used again."""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque

import numpy as np

_HUGE_PAGE = 1 << 21
_KEPT = 4


class BufferPool:
    """Hands out blocks of memory, and takes each back when nothing refers to it any more.

    A batch is tens to hundreds of megabytes, which the system hands out page by page and zeroes first: that costs as
    much as filling them. Safe to share between threads. A few blocks that nobody uses are kept.
    """

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque()

    def take(self, size: int) -> np.ndarray:
        """`[size]` uint8 of any content. Views of it, and tensors made from it, keep it from being used again."""
        block = self._fitting(size)
        if block is None:
            # Some room, so that batches which differ a little share blocks.
            length = -(-max(size + size // 8, 1) // _HUGE_PAGE) * _HUGE_PAGE
            block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # A hint that not every system understands.
            with contextlib.suppress(AttributeError, OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        # The owner of a map is no array, so every view of this array refers to this array, and not past it.
        array = np.frombuffer(block, np.uint8, size)
        weakref.finalize(array, self._take_back, block).atexit = False
        return array

    def _fitting(self, size: int) -> mmap.mmap | None:
        """A free block that is large enough; those that are not are given up."""
        while self._free:
            try:
                block = self._free.popleft()
            except IndexError:
                break
            if len(block) >= size:
                return block
        return None

    def _take_back(self, block: mmap.mmap) -> None:
        if len(self._free) < _KEPT:
            self._free.append(block)
