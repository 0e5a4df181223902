"""Global batch sampler: assigns clips to steps and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slap_fast.data.format.index import ClipIndex, gather
from slap_fast.data.sampling.duration_filter import DurationFilter
from slap_fast.data.sampling.epoch_stream import EpochStream
from slap_fast.data.sampling.keyed_random import Purpose, keyed_generator, keyed_words, to_range
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.data.sampling.rank_split import balanced_groups
from slap_fast.errors import SlapFastError


class SamplingError(SlapFastError, ValueError):
    """The dataset, the batch size and the number of ranks do not fit together."""


class ClipRef(NamedTuple):
    """A clip by its number, the index of its caption, and the samples `[start, end)` to use (None: all)."""

    clip: int
    caption: int
    crop: tuple[int, int] | None = None


@dataclass(frozen=True)
class SkippedClips:
    """Number of clips that are never sampled, and the reason."""

    reason: str
    count: int


@dataclass(frozen=True)
class _GlobalBatch:
    """The clips of a step over all ranks, in the order of the mixture's datasets.

    Attributes:
        clips: `[B]` int64.
        epochs: `[B]` int64, epoch of the clip's dataset.
        milliseconds: `[B]` int64 of audio used.
    """

    step: int
    clips: np.ndarray
    epochs: np.ndarray
    milliseconds: np.ndarray


class GlobalBatchSampler:
    """Cuts endless streams of shuffled epochs (one per dataset) into global batches and splits them over the ranks.

    The global batch of a step is a pure function of (seed, step) and the datasets. It does not depend on the number of
    ranks, so a run can resume with another number at any step without repeating or losing a clip. Each rank gets the
    same number of clips and nearly the same amount of audio (`balanced_groups`). Any step can be computed directly, at
    equal cost.

    - Every usable clip appears once per epoch of its dataset. A batch that spans two epochs may contain a clip twice.
    - In a mixture each dataset has its own epochs. After any number of steps, the share of a dataset matches its weight
      to within as many clips as there are datasets.
    - A batch draws from `shuffle_shards` shards at a time; see `EpochStream` for the trade-off.

    Memory: 8 bytes per 128 clips and about 40 per shard. The rest is read from memory-mapped files on demand.

    Attributes:
        skipped: clips that are never sampled, by reason.
        clips_per_epoch: usable clips of all datasets together.
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
        """
        Args:
            index: the dataset or mixture to sample from.
            batch_size: clips per step, over all ranks.
            seed: in [0, 2^64); keys shuffling, captions, crops and replacements.
            max_duration: seconds; longer clips are left out.
            crop_above_max_duration: instead use a random crop of `max_duration` of a longer clip, a new one each epoch.
            shuffle_shards: number of shards whose clips are shuffled together.

        Raises:
            ValueError: an argument is out of range.
            SamplingError: a dataset has fewer usable clips than its share of a batch.
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
        limit = np.inf if crop_above_max_duration else max_duration
        self._streams = [
            EpochStream(_usable_clips(part, limit), seed=seed, dataset=dataset, window=shuffle_shards)
            for dataset, part in enumerate(self._mixture.indexes)
        ]
        self.clips_per_epoch = sum(stream.clips.count for stream in self._streams)
        self.skipped = self._skipped()
        self._check_sizes()
        self._latest: _GlobalBatch | None = None

    def rank_batch(self, step: int, rank: int, world_size: int) -> list[ClipRef]:
        """The `batch_size / world_size` clips of one rank in one step; a pure function of its arguments.

        Raises:
            ValueError: the step is negative, the rank is not in [0, world_size), or `world_size` does not divide the
                batch size (SamplingError).
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in [0, {world_size})")
        if self.batch_size % world_size:
            raise SamplingError(
                f"a global batch of {self.batch_size} clips cannot be split equally over {world_size} ranks; "
                f"set schedule.batch_size to a multiple of {world_size}"
            )
        batch = self._batch(step)
        own = balanced_groups(batch.milliseconds, world_size)[rank]
        return self._refs(batch.clips[own], batch.epochs[own])

    def replacements(self, step: int, clip: int) -> Iterator[ClipRef]:
        """Endless replacements for a bad clip of this step; the same on every rank.

        They are from the same dataset and not in the step's global batch, unless the batch contains all usable clips of
        the dataset. Two bad clips may draw the same replacement. Empty if the dataset has no other clip.

        Raises:
            ValueError: the clip is not in the step.
        """
        batch = self._batch(step)
        positions = np.flatnonzero(batch.clips == clip)
        if not len(positions):
            raise ValueError(f"clip {clip} is not in step {step}, so it has no replacements there")
        epoch = batch.epochs[positions[:1]]
        dataset = int(np.searchsorted(self._mixture.starts, clip, side="right")) - 1
        first, end = self._mixture.starts[dataset : dataset + 2].tolist()
        usable = self._streams[dataset].clips
        excluded = {taken for taken in batch.clips.tolist() if first <= taken < end}
        if len(excluded) == usable.count:
            excluded = {clip}
        if len(excluded) == usable.count:
            return
        generator = keyed_generator(self.seed, Purpose.REPLACEMENT, step, clip)
        while True:
            replacement = first + usable.rows(generator.integers(usable.count, size=1))
            if int(replacement[0]) not in excluded:
                yield self._refs(replacement, epoch)[0]

    def _batch(self, step: int) -> _GlobalBatch:
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        batch = self._latest
        if batch is None or batch.step != step:
            # A new object, not changed in place: a thread of the loader may be reading the old one.
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
        """`[n]` clips with the caption and crop drawn for their epoch."""
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
        """`[n]` random int64 in [0, choices), one per clip and epoch."""
        words = np.empty(len(clips), np.uint64)
        for epoch in np.unique(epochs).tolist():
            now = epochs == epoch
            words[now] = keyed_words(self.seed, purpose, epoch, clips[now])
        return to_range(words, choices)

    def _skipped(self) -> tuple[SkippedClips, ...]:
        skipped = []
        for index, stream in zip(self._mixture.indexes, self._streams, strict=True):
            if count := len(index) - stream.clips.count:
                where = f" in {index.location}" if len(self._streams) > 1 else ""
                skipped.append(SkippedClips(f"longer than {self._max_duration:g} s{where}", count))
        return tuple(skipped)

    def _check_sizes(self) -> None:
        """Raises if there are too few clips: a batch would contain one twice, a false negative in the loss."""
        for weight, index, stream in zip(self._mixture.weights, self._mixture.indexes, self._streams, strict=True):
            needed = math.ceil(self.batch_size * weight)
            if stream.clips.count < needed:
                part = "" if len(self._streams) == 1 else f"the {needed} that {index.location} contributes to "
                left_out = "".join(f"; {skip.count} left out: {skip.reason}" for skip in self.skipped)
                raise SamplingError(
                    f"{stream.clips.count} usable clips are fewer than {part}the global batch of {self.batch_size}"
                    f"{left_out}. Lower schedule.batch_size, add clips, or raise data.max_duration"
                )


def _usable_clips(index: ClipIndex, max_duration: float) -> DurationFilter:
    sizes = np.array([shard["clips"] for shard in index.info["shards"]], np.int64)
    return DurationFilter(index.durations, sizes, max_duration=max_duration)
