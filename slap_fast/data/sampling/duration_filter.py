"""Duration filter: the clips of a dataset up to a maximum duration, with random access and without a list of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from slap_fast.data.format.index import gather, release_pages

# One count is stored per block of this many clips: 7 MB for 109 million clips.
_BLOCK = 128
_BLOCKS_AT_ONCE = 4096


class DurationFilter:
    """The usable clips of a dataset: those of at most `max_duration`, numbered from 0 in index order.

    Stores only the number of usable clips before each block. The clips of a block are found by reading its durations
    again.

    Attributes:
        max_duration: float32 seconds; a clip that is longer, or whose duration is NaN, is not usable.
        count: number of usable clips.
        shard_starts: `[S + 1]` int64, number of the first usable clip of each shard, then `count`.
    """

    def __init__(self, durations: np.ndarray, shard_sizes: np.ndarray, *, max_duration: float) -> None:
        """
        Args:
            durations: `[N]` float32 seconds; may be memory-mapped.
            shard_sizes: `[S]` int64 clips of each shard; they sum to N.
        """
        self._durations = durations
        # Rounded like the durations, so that a clip of exactly max_duration is usable.
        self.max_duration = np.float32(max_duration)
        counts = [np.zeros(1, np.int64), *self._count_blocks()]
        self._before = np.concatenate(counts).cumsum()  # [blocks + 1]
        self.count = int(self._before[-1])
        self.shard_starts = np.concatenate(list(self._count_shards(np.cumsum(shard_sizes))))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """`[n]` int64 index rows of usable clips, given their numbers, `[n]` in [0, count)."""
        if self.count == len(self._durations):
            return numbers
        blocks = np.searchsorted(self._before, numbers, side="right") - 1
        usable_through = self._usable(blocks).cumsum(1, dtype=np.int32)  # [n, _BLOCK]
        within = numbers - self._before[blocks]
        return blocks * _BLOCK + (usable_through <= within[:, None]).sum(1)

    def _count_shards(self, ends: np.ndarray) -> Iterator[np.ndarray]:
        """`shard_starts` in pieces, from the `[S]` end rows of the shards."""
        yield np.zeros(1, np.int64)
        for start in range(0, len(ends), _BLOCKS_AT_ONCE):
            yield self._count_before(ends[start : start + _BLOCKS_AT_ONCE])

    def _count_before(self, rows: np.ndarray) -> np.ndarray:
        """`[n]` int64 number of usable clips before each row, `[n]` in [0, N]."""
        blocks = rows // _BLOCK
        earlier = np.arange(_BLOCK) < (rows % _BLOCK)[:, None]
        return self._before[blocks] + (self._usable(blocks) & earlier).sum(1)

    def _count_blocks(self) -> Iterator[np.ndarray]:
        """`[blocks]` int64 number of usable clips per block, many blocks at a time."""
        for start in range(0, len(self._durations), _BLOCK * _BLOCKS_AT_ONCE):
            usable = self._durations[start : start + _BLOCK * _BLOCKS_AT_ONCE] <= self.max_duration
            yield np.add.reduceat(usable, np.arange(0, len(usable), _BLOCK), dtype=np.int64)
            release_pages(self._durations)

    def _usable(self, blocks: np.ndarray) -> np.ndarray:
        """`[n, _BLOCK]` bool, True for the usable clips of each block; the last block is padded with False."""
        rows = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
        inside = rows < len(self._durations)
        if not inside.any():
            return inside
        return inside & (gather(self._durations, np.where(inside, rows, 0)) <= self.max_duration)
