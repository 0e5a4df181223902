"""Mixture: several weighted datasets as one list of clips."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from slap_fast.data.format.dataset_files import INDEX_DTYPE
from slap_fast.data.format.index import ClipIndex, DatasetError, StoredClip, gather


class Mixture:
    """Datasets opened for training, with their clips numbered consecutively in the order of the datasets.

    Attributes:
        indexes: the D datasets.
        weights: share of each dataset in the sampled clips; they sum to 1.
        starts: `[D + 1]` int64 number of the first clip of each dataset, then the total number of clips.
    """

    def __init__(self, indexes: Sequence[ClipIndex], weights: Sequence[float]) -> None:
        """
        Args:
            weights: one positive number per dataset; only their ratios matter.

        Raises:
            ValueError: there is no dataset, or a weight is missing, not positive or not finite.
        """
        if not indexes or len(indexes) != len(weights):
            raise ValueError(
                f"{len(weights)} weights for {len(indexes)} datasets; give at least one, each with a weight"
            )
        for index, weight in zip(indexes, weights, strict=True):
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of {index.location} is {weight}; it must be a positive number")
        self.indexes = list(indexes)
        # Exact decimals, so that 0.7 and 0.3 are seven and three tenths.
        exact = [Fraction(str(weight)) for weight in weights]
        self.weights = [weight / sum(exact) for weight in exact]
        self.starts = np.concatenate([[0], np.cumsum([len(index) for index in indexes])]).astype(np.int64)

    @classmethod
    def open(cls, folders: Sequence[tuple[str | os.PathLike[str], float]]) -> Mixture:
        """Opens datasets from `(folder or URL, weight)` pairs.

        Raises:
            DatasetError: a folder is not a dataset or is damaged.
            ValueError: see the constructor.
        """
        return cls([ClipIndex.open(folder) for folder, _ in folders], [weight for _, weight in folders])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def drawn_before(self, clips: int) -> list[int]:
        """Number of clips from each dataset among the first `clips` clips of training.

        The numbers never decrease with `clips`, sum to `clips`, and differ from `clips * weight` by less than D.
        """
        counts = []
        rest, rest_weight = clips, Fraction(1)
        for weight in self.weights:
            count = int(rest * weight / rest_weight) if rest_weight else rest
            counts.append(count)
            rest, rest_weight = rest - count, rest_weight - weight
        return counts

    def mel_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the log-mel values of a batch, combined from those of the datasets."""
        seconds = [index.info["seconds"] / len(index) for index in self.indexes]
        shares = np.array(self.weights, np.float64) * seconds
        shares /= shares.sum()
        means = np.array([index.info["mel_mean"] for index in self.indexes], np.float64)
        deviations = np.array([index.info["mel_std"] for index in self.indexes], np.float64)
        mean = float(shares @ means)
        return mean, math.sqrt(float(shares @ (deviations**2 + (means - mean) ** 2)))

    def records(self, clips: np.ndarray) -> np.ndarray:
        """`[n]` INDEX_DTYPE records of `[n]` clips."""
        found = np.empty(len(clips), INDEX_DTYPE)
        datasets = np.searchsorted(self.starts, clips, side="right") - 1
        for dataset in np.unique(datasets).tolist():
            own = datasets == dataset
            found[own] = gather(self.indexes[dataset].records, clips[own] - self.starts[dataset])
        return found

    def shard_name(self, clip: int) -> str:
        """Name of the tar that holds the clip, with its folder if there are several datasets."""
        index, row = self._locate(clip)
        name = index.shard_name(row)
        return name if len(self.indexes) == 1 else f"{index.location.rstrip('/')}/{name}"

    def name(self, clip: int) -> str:
        """The clip's key for messages, or its number if the key cannot be read."""
        index, row = self._locate(clip)
        try:
            return index.key(row, retry=False)
        except DatasetError:
            return f"row {clip}"

    def read_clips(self, clips: np.ndarray) -> list[StoredClip | DatasetError]:
        """See `ClipIndex.read_clips`."""
        found: list[StoredClip | DatasetError | None] = [None] * len(clips)
        datasets = np.searchsorted(self.starts, clips, side="right") - 1
        for dataset in np.unique(datasets).tolist():
            items = np.flatnonzero(datasets == dataset)
            rows = clips[items] - self.starts[dataset]
            for item, clip in zip(items.tolist(), self.indexes[dataset].read_clips(rows), strict=True):
                found[item] = clip
        return [clip for clip in found if clip is not None]

    def release(self) -> None:
        """See `ClipIndex.release`."""
        for index in self.indexes:
            index.release()

    def _locate(self, clip: int) -> tuple[ClipIndex, int]:
        """
        Raises:
            IndexError: there is no such clip.
        """
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} is not in [0, {len(self)})")
        dataset = int(np.searchsorted(self.starts, clip, side="right")) - 1
        return self.indexes[dataset], clip - int(self.starts[dataset])
