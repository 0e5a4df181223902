"""Epoch stream: one dataset as an endless stream of shuffled epochs with random access by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slap_fast.data.sampling.duration_filter import DurationFilter
from slap_fast.data.sampling.keyed_permutation import ROUNDS, permuted
from slap_fast.data.sampling.keyed_random import Purpose, keyed_generator


@dataclass(frozen=True)
class _Epoch:
    """The shard order of one epoch.

    Attributes:
        number: of the epoch.
        shards: `[S]` int64, the shards in reading order.
        ends: `[S]` int64, cumulative clip count after each of them.
    """

    number: int
    shards: np.ndarray
    ends: np.ndarray


class EpochStream:
    """The usable clips of a dataset, each once per epoch, in an order determined by `(seed, dataset, epoch)`.

    An epoch is shuffled in two stages: the shards are shuffled and cut into windows of about `window` shards, then the
    clips of each window are shuffled together. The stream reads one window at a time, so a shard is needed only during
    its window, and storage can fetch it as a whole. A larger window mixes batches better: a batch has clips of at most
    `window` shards (unless a window has fewer clips than a batch). A window of all shards shuffles the epoch uniformly.

    Only the shard order is stored; positions within a window are permuted by a keyed bijection.

    Args:
        seed: in [0, 2^64).
        dataset: in [0, 2^24); makes the orders of the datasets of a mixture independent.
        window: number of shards shuffled together, at least 1.
    """

    def __init__(self, clips: DurationFilter, *, seed: int, dataset: int, window: int) -> None:
        self.clips = clips
        self._seed = seed
        self._dataset = dataset
        shards = len(clips.shard_starts) - 1
        windows = -(-shards // window)
        # [windows + 1], of nearly equal sizes, so that the last window is not a single shard
        self._edges = np.arange(windows + 1) * shards // max(windows, 1)
        self._epochs: dict[int, _Epoch] = {}

    def read(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`[count]` int64 clip rows and `[count]` int64 epochs from position `start` on; needs a usable clip."""
        rows, epochs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while count:
            epoch, begin = divmod(start, self.clips.count)
            length = min(count, self.clips.count - begin)
            rows.append(self._read_epoch(self._epoch(epoch), begin, begin + length))
            epochs.append(np.full(length, epoch))
            start, count = start + length, count - length
        return np.concatenate(rows), np.concatenate(epochs)

    def _epoch(self, number: int) -> _Epoch:
        epoch = self._epochs.get(number)
        if epoch is None:
            sizes = np.diff(self.clips.shard_starts)
            shards = self._generator(number, 0).permutation(len(sizes))
            epoch = _Epoch(number, shards, np.cumsum(sizes[shards]))
            # A new dict, not changed in place: a thread of the loader may be reading the old one.
            self._epochs = {n: kept for n, kept in self._epochs.items() if abs(n - number) == 1} | {number: epoch}
        return epoch

    def _read_epoch(self, epoch: _Epoch, begin: int, end: int) -> np.ndarray:
        """`[end - begin]` int64 rows at these positions of an epoch."""
        window_ends = epoch.ends[self._edges[1:] - 1]
        first, last = np.searchsorted(window_ends, [begin, end - 1], side="right").tolist()
        rows = []
        for window in range(first, last + 1):
            low = int(window_ends[window - 1]) if window else 0
            high = int(window_ends[window])
            if low < high:  # a window may have no usable clips
                rows.append(self._read_window(epoch, window, np.arange(max(begin, low), min(end, high)) - low, low))
        return np.concatenate(rows)

    def _read_window(self, epoch: _Epoch, window: int, positions: np.ndarray, low: int) -> np.ndarray:
        """`[n]` int64 rows at `[n]` positions of a window that starts at `low`."""
        keys = self._generator(epoch.number, window + 1).integers(2**64, size=ROUNDS, dtype=np.uint64)
        own = slice(self._edges[window], self._edges[window + 1])
        shards, ends = epoch.shards[own], epoch.ends[own] - low
        drawn = permuted(positions, int(ends[-1]), keys)
        place = np.searchsorted(ends, drawn, side="right")
        starts = self.clips.shard_starts
        # Counted back from the end of the shard, because only the ends are stored.
        return self.clips.rows(starts[shards[place] + 1] - (ends[place] - drawn))

    def _generator(self, epoch: int, part: int) -> np.random.Generator:
        return keyed_generator(self._seed, Purpose.EPOCH_ORDER, epoch, self._dataset << 40 | part)
