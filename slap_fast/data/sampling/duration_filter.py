"""The clips of a dataset that training may use, counted and found without a list of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from slap_fast.data.format.index import gather, release_pages

# Clips whose durations are looked at together: one count is kept for each block, 7 MB for 109 million clips.
_BLOCK = 128
_BLOCKS_AT_ONCE = 4096


class UsableClips:
    """Those clips that last at most so long. Usable clips are numbered from 0, in the order of the index.

    What is kept is how many usable clips come before each block of clips. Which of a block's clips are usable is read
    from the durations again whenever one of them is asked for.

    Attributes:
        longest: seconds; a clip that lasts longer, or whose duration is not a number, is not usable.
        count: usable clips.
        shard_starts: `[S + 1]` int64, number of the first usable clip of each shard, and `count`.
    """

    def __init__(self, durations: np.ndarray, shard_sizes: np.ndarray, *, longest: float) -> None:
        """
        Args:
            durations: `[N]` float32 seconds; may be memory-mapped.
            shard_sizes: `[S]` int64 clips of each shard; they sum to N.
        """
        self._durations = durations
        # Rounded as the durations are: what is exactly as long as allowed stays in.
        self.longest = np.float32(longest)
        counts = [np.zeros(1, np.int64), *self._count_blocks()]
        self._before = np.concatenate(counts).cumsum()  # [blocks + 1]
        self.count = int(self._before[-1])
        self.shard_starts = np.concatenate(list(self._count_shards(np.cumsum(shard_sizes))))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """`[n]` int64 rows in the index of usable clips by their numbers, `[n]` in [0, count)."""
        if self.count == len(self._durations):
            return numbers
        blocks = np.searchsorted(self._before, numbers, side="right") - 1
        usable_through = self._usable(blocks).cumsum(1, dtype=np.int32)  # [n, _BLOCK]
        within = numbers - self._before[blocks]
        return blocks * _BLOCK + (usable_through <= within[:, None]).sum(1)

    def _count_shards(self, ends: np.ndarray) -> Iterator[np.ndarray]:
        """`shard_starts`, piece by piece, from the `[S]` ends of the shards in the index."""
        yield np.zeros(1, np.int64)
        for start in range(0, len(ends), _BLOCKS_AT_ONCE):
            yield self._count_before(ends[start : start + _BLOCKS_AT_ONCE])

    def _count_before(self, rows: np.ndarray) -> np.ndarray:
        """`[n]` int64 usable clips before each row, `[n]` in [0, N]."""
        blocks = rows // _BLOCK
        earlier = np.arange(_BLOCK) < (rows % _BLOCK)[:, None]
        return self._before[blocks] + (self._usable(blocks) & earlier).sum(1)

    def _count_blocks(self) -> Iterator[np.ndarray]:
        """`[blocks]` int64 usable clips of each block, many blocks at a time."""
        for start in range(0, len(self._durations), _BLOCK * _BLOCKS_AT_ONCE):
            usable = self._durations[start : start + _BLOCK * _BLOCKS_AT_ONCE] <= self.longest
            yield np.add.reduceat(usable, np.arange(0, len(usable), _BLOCK), dtype=np.int64)
            release_pages(self._durations)

    def _usable(self, blocks: np.ndarray) -> np.ndarray:
        """`[n, _BLOCK]` bool, which clips of each block are usable; the last block is filled up with False."""
        rows = blocks[:, None] * _BLOCK + np.arange(_BLOCK)
        inside = rows < len(self._durations)
        if not inside.any():
            return inside
        return inside & (gather(self._durations, np.where(inside, rows, 0)) <= self.longest)
