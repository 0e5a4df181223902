"""Spectrogram of a recording of any length in bounded memory, for a plot: neighboring frames are merged by maximum."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig

MAX_ROWS = 4096


class MelOverview:
    """At most `MAX_ROWS` rows of log-mel values, each the maximum over the same number of frames.

    Args:
        config: of the model.
    """

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        self.merged = 1
        """Frames in a row."""
        # One array for all: rows in arrays of their own would pin what is around them in the heap.
        self._rows = np.empty((2 * MAX_ROWS, config.n_mels), np.float32)
        self._count = 0  # of the rows that are filled
        self._rest = np.empty((0, config.n_mels), np.float32)  # frames that do not fill a row yet

    def add(self, part: tuple[Tensor, slice]) -> None:
        """Add frames: samples, and which of their frames follow those so far."""
        samples, frames = part
        offsets = torch.tensor([0, len(samples)])
        self._append(log_mel(samples.cpu(), offsets, self.config)[frames].numpy())

    def _append(self, frames: np.ndarray) -> None:
        rest = np.concatenate([self._rest, frames])
        while full := min(len(rest) // self.merged, len(self._rows) - self._count):
            self._rows[self._count : self._count + full] = _merged(rest[: full * self.merged], self.merged)
            self._count += full
            rest = rest[full * self.merged :]
            while self._count > MAX_ROWS:
                half, odd = divmod(self._count, 2)
                if odd:  # a row without its pair goes back to the frames: its maximum stands for all of them
                    last = self._rows[self._count - 1 : self._count]
                    rest = np.concatenate([np.repeat(last, self.merged, axis=0), rest])
                self._rows[:half] = _merged(self._rows[: 2 * half], 2)
                self._count = half
                self.merged *= 2
        self._rest = rest.copy()

    def rows(self) -> np.ndarray:
        """`[R, n_mels]` float32 normalized log-mel values."""
        rows = self._rows[: self._count]
        return np.concatenate([rows, self._rest.max(0, keepdims=True)]) if len(self._rest) else rows.copy()


def _merged(rows: np.ndarray, count: int) -> np.ndarray:
    """Maximum over each `count` rows, the number of which is a multiple of it."""
    return rows.reshape(-1, count, rows.shape[1]).max(1)
