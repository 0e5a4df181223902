"""Buffer pool: reuses large blocks of memory for the batches of a loader."""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque

import numpy as np

_HUGE_PAGE = 1 << 21
_MAX_FREE = 4  # blocks kept for reuse


class BufferPool:
    """Allocates blocks of memory and reuses each once nothing refers to it.

    A batch takes tens to hundreds of megabytes; the page faults and zeroing of fresh memory cost as much as filling it.
    Thread-safe.
    """

    def __init__(self) -> None:
        self._free: deque[mmap.mmap] = deque()

    def take(self, size: int) -> np.ndarray:
        """`[size]` uint8, uninitialized. The block is not reused while a view of it or a tensor on it exists."""
        block = self._fitting(size)
        if block is None:
            # Extra room, so that batches of similar size can reuse the block.
            length = -(-max(size + size // 8, 1) // _HUGE_PAGE) * _HUGE_PAGE
            block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            # A hint that not every system supports.
            with contextlib.suppress(AttributeError, OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        # The base of this array is not an array, so NumPy makes this array the base of every view, and it stays alive.
        array = np.frombuffer(block, np.uint8, size)
        weakref.finalize(array, self._take_back, block).atexit = False
        return array

    def _fitting(self, size: int) -> mmap.mmap | None:
        """A free block that is large enough; smaller ones are released."""
        while self._free:
            try:
                block = self._free.popleft()
            except IndexError:
                break
            if len(block) >= size:
                return block
        return None

    def _take_back(self, block: mmap.mmap) -> None:
        if len(self._free) < _MAX_FREE:
            self._free.append(block)
