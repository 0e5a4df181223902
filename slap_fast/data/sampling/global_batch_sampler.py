"""Which clip is in which step on which rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slap_fast.data.format.index import ClipIndex, gather
from slap_fast.data.sampling.duration_filter import UsableClips
from slap_fast.data.sampling.epoch_stream import EpochStream
from slap_fast.data.sampling.keyed_random import Purpose, keyed_generator, keyed_words, scaled
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.data.sampling.rank_split import balanced_groups
from slap_fast.errors import SlapFastError


class SamplingError(SlapFastError, ValueError):
    """A dataset, a batch size and a number of ranks that do not go together."""


class ClipRef(NamedTuple):
    """A clip by its number, which of its captions, and which of its samples where not all: `[first, last)`."""

    clip: int
    caption: int
    crop: tuple[int, int] | None = None


@dataclass(frozen=True)
class SkippedClips:
    """How many clips the plan leaves out, and why."""

    reason: str
    count: int


@dataclass(frozen=True)
class _GlobalBatch:
    """A step's clips over all ranks, those of the mixture's first dataset first.

    Attributes:
        clips: `[B]` int64.
        epochs: `[B]` int64, how often the clip's dataset was gone through before.
        milliseconds: `[B]` int64, of audio that is used.
    """

    step: int
    clips: np.ndarray
    epochs: np.ndarray
    milliseconds: np.ndarray


class GlobalBatchSampler:
    """The order of training: endless streams of shuffled epochs, one a dataset, cut into global batches.

    A step's global batch is a pure function of (seed, step) and the datasets. It is the same for any number of ranks,
    and so training may go on with another number at any step, with no clip repeated or left out. Ranks share it in
    equal counts and nearly equal audio (`balanced_groups`). Any step can be asked for directly, at equal cost.

    - Every usable clip comes once an epoch of its dataset. A batch may span two epochs, and may then hold a clip twice.
    - Of a mixture, each dataset has epochs of its own, and after any number of steps its part of all clips is as its
      weight says, to within as many clips as there are datasets.
    - A batch draws on `shuffle_shards` shards at a time: see `EpochStream` for what that trades.

    Memory: 8 bytes for 128 clips and some 40 a shard. The rest is read from the memory-mapped files where it is needed.

    Attributes:
        skipped: clips left out for good, by reason.
        clips_per_epoch: clips that are left, of all datasets together.
    """

    def __init__(
        self,
        index: ClipIndex | Mixture,
        *,
        batch_size: int,
        seed: int,
        max_duration: float,
        crop_above_max_duration: bool = False,
        shuffle_shards: int = 64,
    ) -> None:
        """Plan over the clips of `index`.

        Args:
            batch_size: clips in a step, over all ranks.
            seed: in [0, 2^64); keys the shuffling, the captions, the crops and the spares.
            max_duration: seconds; longer clips are left out.
            crop_above_max_duration: use a random stretch of `max_duration` of a longer clip instead, another one each
                epoch.
            shuffle_shards: shards whose clips are shuffled together.

        Raises:
            ValueError: an argument is out of range.
            SamplingError: a dataset has fewer usable clips than its part of a batch.
        """
        for name, count in (("batch_size", batch_size), ("shuffle_shards", shuffle_shards)):
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1")
        if not max_duration > 0:
            raise ValueError(f"max_duration is {max_duration}; it must be a positive number of seconds")
        self.batch_size = batch_size
        self.seed = seed
        self._max_duration = max_duration
        self._crop = crop_above_max_duration
        self._mixture = index if isinstance(index, Mixture) else Mixture([index], [1.0])
        longest = np.inf if crop_above_max_duration else max_duration
        self._streams = [
            EpochStream(_usable_clips(part, longest), seed=seed, dataset=dataset, window=shuffle_shards)
            for dataset, part in enumerate(self._mixture.indexes)
        ]
        self.clips_per_epoch = sum(stream.clips.count for stream in self._streams)
        self.skipped = self._skipped()
        self._check_sizes()
        self._latest: _GlobalBatch | None = None

    def rank_batch(self, step: int, rank: int, world_size: int) -> list[ClipRef]:
        """The `batch_size / world_size` clips of one rank in one step: a pure function of its arguments.

        Raises:
            ValueError: the step is negative, the rank is not in [0, world_size), or the ranks cannot share the batch
                equally.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in [0, {world_size})")
        if self.batch_size % world_size:
            raise SamplingError(
                f"a global batch of {self.batch_size} clips cannot be shared equally by {world_size} ranks; "
                f"set schedule.batch_size to a multiple of {world_size}"
            )
        batch = self._batch(step)
        own = balanced_groups(batch.milliseconds, world_size)[rank]
        return self._refs(batch.clips[own], batch.epochs[own])

    def replacements(self, step: int, clip: int) -> Iterator[ClipRef]:
        """Endless replacements for a clip of this step that turns out bad, whichever rank holds it.

        They are of the same dataset. None of them is in the step's global batch, unless that already holds every usable
        clip of the dataset. Two bad clips may draw the same replacement. There is no spare where there is no other
        clip.

        Raises:
            ValueError: the clip is not in the step.
        """
        batch = self._batch(step)
        positions = np.flatnonzero(batch.clips == clip)
        if not len(positions):
            raise ValueError(f"clip {clip} is not in step {step}, so it has no spares there")
        epoch = batch.epochs[positions[:1]]
        dataset = int(np.searchsorted(self._mixture.starts, clip, side="right")) - 1
        first, end = self._mixture.starts[dataset : dataset + 2].tolist()
        usable = self._streams[dataset].clips
        excluded = {taken for taken in batch.clips.tolist() if first <= taken < end}
        if len(excluded) == usable.count:
            excluded = {clip}
        if len(excluded) == usable.count:
            return
        generator = keyed_generator(self.seed, Purpose.SPARE, step, clip)
        while True:
            spare = first + usable.rows(generator.integers(usable.count, size=1))
            if int(spare[0]) not in excluded:
                yield self._refs(spare, epoch)[0]

    def _batch(self, step: int) -> _GlobalBatch:
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        batch = self._latest
        if batch is None or batch.step != step:
            # Replaced whole, never changed in place: a loader's thread may be reading.
            self._latest = batch = self._draw(step)
        return batch

    def _draw(self, step: int) -> _GlobalBatch:
        begins, ends = (self._mixture.drawn_before(count * self.batch_size) for count in (step, step + 1))
        clips, epochs, seconds = [], [], []
        for dataset, stream in enumerate(self._streams):
            rows, numbers = stream.read(begins[dataset], ends[dataset] - begins[dataset])
            clips.append(self._mixture.starts[dataset] + rows)
            epochs.append(numbers)
            seconds.append(gather(self._mixture.indexes[dataset].durations, rows))
        used = np.minimum(np.concatenate(seconds).astype(np.float64), self._max_duration)
        return _GlobalBatch(step, np.concatenate(clips), np.concatenate(epochs), np.rint(used * 1000).astype(np.int64))

    def _refs(self, clips: np.ndarray, epochs: np.ndarray) -> list[ClipRef]:
        """`[n]` clips, each in its epoch, with what is drawn for it there."""
        records = self._mixture.records(clips)
        captions = self._drawn(Purpose.CAPTION, clips, epochs, records["captions"])
        if not self._crop:
            return [ClipRef(clip, caption) for clip, caption in zip(clips.tolist(), captions.tolist(), strict=True)]
        samples = records["samples"].astype(np.int64)
        longest = (self._max_duration * records["sample_rate"]).astype(np.int64)
        starts = self._drawn(Purpose.CROP, clips, epochs, np.clip(samples - longest + 1, 1, 2**32 - 1))
        return [
            ClipRef(clip, caption, (start, start + length) if length < total else None)
            for clip, caption, start, length, total in zip(
                *(values.tolist() for values in (clips, captions, starts, longest, samples)), strict=True
            )
        ]

    def _drawn(self, purpose: Purpose, clips: np.ndarray, epochs: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """`[n]` int64 in [0, choice), one for each clip, another one in each epoch."""
        words = np.empty(len(clips), np.uint64)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            words[now] = keyed_words(self.seed, purpose, epoch, clips[now])
        return scaled(words, choices)

    def _skipped(self) -> tuple[SkippedClips, ...]:
        skipped = []
        for index, stream in zip(self._mixture.indexes, self._streams, strict=True):
            if count := len(index) - stream.clips.count:
                where = f" in {index.location}" if len(self._streams) > 1 else ""
                skipped.append(SkippedClips(f"longer than {self._max_duration:g} s{where}", count))
        return tuple(skipped)

    def _check_sizes(self) -> None:
        """With too few clips a batch would hold one twice by necessity: a false negative in contrastive losses."""
        for weight, index, stream in zip(self._mixture.weights, self._mixture.indexes, self._streams, strict=True):
            needed = math.ceil(self.batch_size * weight)
            if stream.clips.count < needed:
                part = "" if len(self._streams) == 1 else f"the {needed} that {index.location} gives to "
                left_out = "".join(f"; {skip.count} left out: {skip.reason}" for skip in self.skipped)
                raise SamplingError(
                    f"{stream.clips.count} usable clips are fewer than {part}the global batch of {self.batch_size}"
                    f"{left_out}. Lower schedule.batch_size, add clips, or raise data.max_duration"
                )


def _usable_clips(index: ClipIndex, longest: float) -> UsableClips:
    sizes = np.array([shard["clips"] for shard in index.info["shards"]], np.int64)
    return UsableClips(index.durations, sizes, longest=longest)
