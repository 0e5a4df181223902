"""Rows that are added piece by piece, in one array."""

from __future__ import annotations

import numpy as np

_FIRST_ROWS = 1 << 12


class GrowingRows:
    """Rows of float32 in an array that doubles when it is full.

    Each piece in an array of its own would pin what is around it in the heap, where large buffers come and go: for a
    day of sound, hundreds of megabytes.
    """

    def __init__(self, width: int) -> None:
        self._rows = np.empty((_FIRST_ROWS, width), np.float32)
        self._used = 0

    def add(self, rows: np.ndarray) -> None:
        """Append `[n, width]` rows."""
        end = self._used + len(rows)
        while end > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._used : end] = rows
        self._used = end

    def all(self) -> np.ndarray:
        """A copy of all rows, `[N, width]`."""
        return self._rows[: self._used].copy()
