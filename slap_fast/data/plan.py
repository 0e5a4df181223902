"""Which clip is in which step on which rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slap_fast.data.keyed_random import Purpose, keyed_generator

if TYPE_CHECKING:
    from slap_fast.data.index import ClipIndex


class PlanError(ValueError):
    """A dataset, a batch size and a number of ranks that do not go together."""


class ClipRef(NamedTuple):
    """A clip by its row in the index, and which of its captions."""

    clip: int
    caption: int


@dataclass(frozen=True)
class SkippedClips:
    """Clips that the plan leaves out.

    Attributes:
        reason: why.
        clips: `[count]` int64, their rows in the index, ascending.
    """

    reason: str
    clips: np.ndarray

    @property
    def count(self) -> int:
        return len(self.clips)


class Plan:
    """The order of training: an endless stream of shuffled epochs, cut into global batches.

    Step `s` takes positions `[s * batch_size, (s + 1) * batch_size)` of the stream, and rank `r` of `w` takes every
    `w`-th of these from the `r`-th on. So a step's global batch is the same for any number of ranks, ranks have equal
    clip counts, every usable clip comes once an epoch, and any step can be asked for directly. A batch may span two
    epochs, and may then hold a clip twice.

    Attributes:
        skipped: clips left out for good, by reason; a clip with several reasons is listed under the first.
        clips_per_epoch: clips that are left.
    """

    def __init__(self, index: ClipIndex, *, batch_size: int, seed: int, max_duration: float) -> None:
        """Plan over the clips of `index` that last at most `max_duration` seconds and have audio and a caption.

        Args:
            batch_size: clips in a step, over all ranks.
            seed: in [0, 2^64); keys the shuffling, the captions and the spares.

        Raises:
            ValueError: an argument is out of range.
            PlanError: fewer clips are usable than one batch takes.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not max_duration > 0:
            raise ValueError(f"max_duration is {max_duration}; it must be a positive number of seconds")
        self.batch_size = batch_size
        self.seed = seed
        self._captions = index.records["captions"]
        self.skipped, self._usable = _usable_clips(index, max_duration)
        self.clips_per_epoch = len(self._usable)
        if self.clips_per_epoch < batch_size:
            # Otherwise one batch would hold a clip twice by necessity: a false negative in every contrastive loss.
            left_out = "".join(f"; {skip.count} left out: {skip.reason}" for skip in self.skipped)
            raise PlanError(
                f"{self.clips_per_epoch} usable clips are fewer than the global batch of {batch_size}{left_out}. "
                "Lower schedule.batch_size, add clips, or raise data.max_duration"
            )
        self._orders: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the clips that are left over open the batch that spans into the next one."""
        return self.clips_per_epoch // self.batch_size

    def step(self, step: int, rank: int, world_size: int) -> list[ClipRef]:
        """The `batch_size / world_size` clips of one rank in one step: a pure function of its arguments.

        Raises:
            ValueError: the step is negative, the rank is not in [0, world_size), or the ranks cannot share the batch
                equally.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in [0, {world_size})")
        if self.batch_size % world_size:
            raise PlanError(
                f"a global batch of {self.batch_size} clips cannot be shared equally by {world_size} ranks; "
                f"set schedule.batch_size to a multiple of {world_size}"
            )
        clips, epochs = self._batch(step)
        own = slice(rank, None, world_size)
        return [self._ref(int(clip), int(epoch)) for clip, epoch in zip(clips[own], epochs[own], strict=True)]

    def spares(self, step: int, clip: int) -> Iterator[ClipRef]:
        """Endless replacements for a clip of this step that turns out bad, whichever rank holds it.

        None of them is in the step's global batch, unless that already holds every usable clip. Two bad clips may
        draw the same replacement. There is no spare where there is no other clip.

        Raises:
            ValueError: the clip is not in the step.
        """
        clips, epochs = self._batch(step)
        positions = np.flatnonzero(clips == clip)
        if not len(positions):
            raise ValueError(f"clip {clip} is not in step {step}, so it has no spares there")
        epoch = int(epochs[positions[0]])
        batch = set(clips.tolist())
        excluded = batch if len(batch) < self.clips_per_epoch else {clip}
        if len(excluded) == self.clips_per_epoch:
            return
        generator = keyed_generator(self.seed, Purpose.SPARE, step, clip)
        while True:
            spare = int(self._usable[generator.integers(self.clips_per_epoch)])
            if spare not in excluded:
                yield self._ref(spare, epoch)

    def _batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """`[batch_size]` clips of a step over all ranks, and the epoch of each."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        start = step * self.batch_size
        epochs, offsets = np.divmod(np.arange(start, start + self.batch_size), self.clips_per_epoch)
        first = int(epochs[0])
        split = int(np.searchsorted(epochs, first, side="right"))
        clips = self._order(first)[offsets[:split]]
        # A batch is never larger than an epoch, so it touches two at most.
        if split < self.batch_size:
            clips = np.concatenate([clips, self._order(first + 1)[offsets[split:]]])
        return clips, epochs

    def _order(self, epoch: int) -> np.ndarray:
        """`[clips_per_epoch]` the clips in the order of one epoch."""
        order = self._orders.get(epoch)
        if order is None:
            order = keyed_generator(self.seed, Purpose.EPOCH_ORDER, epoch).permutation(self._usable)
            # Replaced whole, never changed in place: a loader's thread may be reading.
            self._orders = {e: kept for e, kept in self._orders.items() if abs(e - epoch) == 1} | {epoch: order}
        return order

    def _ref(self, clip: int, epoch: int) -> ClipRef:
        choices = int(self._captions[clip])
        generator = keyed_generator(self.seed, Purpose.CAPTION, epoch, clip)
        return ClipRef(clip, int(generator.integers(choices)) if choices > 1 else 0)


def _usable_clips(index: ClipIndex, max_duration: float) -> tuple[tuple[SkippedClips, ...], np.ndarray]:
    """What is left out, and the rows that are left."""
    records = index.records
    usable = np.ones(len(index), dtype=bool)
    skipped = []
    for reason, bad in (
        ("no samples", records["samples"] == 0),
        ("no captions", records["captions"] == 0),
        # Negated, so that a duration that is not a number counts as too long.
        (f"longer than {max_duration:g} s", ~(np.asarray(index.durations) <= max_duration)),
    ):
        clips = np.flatnonzero(usable & bad)
        if len(clips):
            skipped.append(SkippedClips(reason, clips))
            usable[clips] = False
    return tuple(skipped), np.flatnonzero(usable).astype(np.uint32 if len(index) < 2**32 else np.uint64)
