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
        self._rows: list[np.ndarray] = []
        self._rest = np.empty((0, config.n_mels), np.float32)  # frames that do not fill a row yet

    def add(self, part: tuple[Tensor, slice]) -> None:
        """Add frames: samples, and which of their frames follow those so far."""
        samples, frames = part
        offsets = torch.tensor([0, len(samples)])
        self._append(log_mel(samples.cpu(), offsets, self.config)[frames].numpy())

    def _append(self, frames: np.ndarray) -> None:
        rest = np.concatenate([self._rest, frames])
        full = len(rest) // self.merged
        self._rows += list(_merged(rest[: full * self.merged], self.merged))
        self._rest = rest[full * self.merged :]
        while len(self._rows) > MAX_ROWS:
            even = len(self._rows) // 2 * 2
            # A row without its pair goes back to the frames: its maximum stands for all of them.
            odd = np.repeat(np.stack(self._rows[even:]), self.merged, axis=0) if len(self._rows) > even else None
            self._rows = list(_merged(np.stack(self._rows[:even]), 2))
            if odd is not None:
                self._rest = np.concatenate([odd, self._rest])
            self.merged *= 2

    def rows(self) -> np.ndarray:
        """`[R, n_mels]` float32 normalized log-mel values."""
        rows = np.stack(self._rows) if self._rows else np.empty((0, self.config.n_mels), np.float32)
        return np.concatenate([rows, self._rest.max(0, keepdims=True)]) if len(self._rest) else rows


def _merged(rows: np.ndarray, count: int) -> np.ndarray:
    """Maximum over each `count` rows, the number of which is a multiple of it."""
    return rows.reshape(-1, count, rows.shape[1]).max(1)
