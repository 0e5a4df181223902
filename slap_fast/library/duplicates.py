"""Duplicates of a library: recordings with the same content, and recordings that sound nearly the same.

A group has an original and its copies. Each copy is compared with the original alone, not with other copies, so that a
chain of small differences does not join recordings that differ. The original is the oldest of its group, since a copy
has a later modification time; of several with the same time, it is the longest, then the first by path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from slap_fast.library.database import Recording
from slap_fast.library.errors import LibraryError

if TYPE_CHECKING:
    from slap_fast.library.library import Library

THRESHOLD = 0.98
"""Least cosine similarity of two near-duplicates. docs/library.md has the measurement."""
LENGTH_RATIO = 1.25
"""Largest ratio of the durations of two near-duplicates."""
_ROUNDING = 1e-6  # equal embeddings have a similarity slightly below or above 1
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # the years 1 to 9999, since 1970
_ROWS, _COLUMNS = 1024, 8192  # of the blocks of the similarity matrix: 32 MiB


@dataclass(frozen=True)
class Copy:
    """One recording of a group.

    Attributes:
        recording: the recording.
        similarity: cosine similarity with the original of the group; 1 for the original.
        identical: its content is that of the original, byte for byte.
    """

    recording: Recording
    similarity: float
    identical: bool

    @property
    def modified(self) -> datetime:
        """Modification time of the file, UTC; the first or last that a datetime can have if it is beyond that."""
        seconds = self.recording.mtime_ns // 10**9
        return datetime.fromtimestamp(min(max(seconds, _FIRST_SECOND), _LAST_SECOND), timezone.utc)


@dataclass(frozen=True)
class DuplicateGroup:
    """An original, which comes first, and its copies: identical ones, then others by descending similarity."""

    copies: tuple[Copy, ...]

    @property
    def original(self) -> Recording:
        """The oldest recording of the group."""
        return self.copies[0].recording

    @property
    def longest(self) -> Recording:
        """The recording with the longest duration; of several, the first."""
        return max((copy.recording for copy in self.copies), key=lambda recording: recording.seconds)

    def to_json(self) -> dict[str, Any]:
        """For JSON: a list of the recordings, each with its role."""
        return {
            "recordings": [
                {
                    "path": copy.recording.path,
                    "member": copy.recording.member,
                    "seconds": copy.recording.seconds,
                    "size": copy.recording.size,
                    "modified": copy.modified.isoformat(),
                    "similarity": copy.similarity,
                    "identical": copy.identical,
                    "oldest": copy.recording is self.original,
                    "longest": copy.recording is self.longest,
                }
                for copy in self.copies
            ]
        }


def find_duplicates(
    library: Library,
    *,
    threshold: float | None = THRESHOLD,
    length_ratio: float = LENGTH_RATIO,
    progress: Callable[[int], object] | None = None,
) -> list[DuplicateGroup]:
    """Groups of recordings that are the same or nearly the same.

    A recording that is only a part of a longer one is not found: search for it by its sound. The time grows with the
    square of the number of recordings; the memory is that of their embeddings.

    Args:
        library: the library; nothing in it is changed.
        threshold: least cosine similarity of the embeddings of near-duplicates, above -1 and at most 1; None finds
            identical content alone, at once.
        length_ratio: largest ratio of their durations, at least 1.
        progress: called with a number of recordings that are done, several times.

    Returns:
        Groups in the order of the paths of their originals. No recording is in two groups.

    Raises:
        LibraryError: `threshold` or `length_ratio` is out of range, or an embedding is not finite.
    """
    recordings, embeddings = library.embeddings()
    return group_duplicates(recordings, embeddings, threshold=threshold, length_ratio=length_ratio, progress=progress)


def group_duplicates(
    recordings: Sequence[Recording],
    embeddings: np.ndarray,
    *,
    threshold: float | None = THRESHOLD,
    length_ratio: float = LENGTH_RATIO,
    progress: Callable[[int], object] | None = None,
) -> list[DuplicateGroup]:
    """`find_duplicates` of recordings and their embeddings `[N, D]` float32, of unit length."""
    if threshold is not None and not -1 < threshold <= 1:
        raise LibraryError(f"threshold is {threshold:g}; it must be above -1 and at most 1")
    if not length_ratio >= 1:
        raise LibraryError(f"length_ratio is {length_ratio:g}; it must be at least 1")
    for row in np.flatnonzero(~np.isfinite(embeddings.sum(axis=1)))[:1].tolist():
        # It would be unlike itself, and hide duplicates of others.
        raise LibraryError(
            f"{recordings[row].name}: its embedding is not finite, so the library is damaged; index again into another "
            "folder"
        )
    order = sorted(range(len(recordings)), key=lambda row: _age(recordings[row]))
    same: dict[bytes, list[int]] = {}
    for row in order:
        same.setdefault(recordings[row].digest, []).append(row)
    firsts = np.array([rows[0] for rows in same.values()], np.int64)  # one recording of each content, oldest first
    seconds = np.array([recordings[row].seconds for row in firsts])
    originals, similarity = np.arange(len(firsts)), np.ones(len(firsts), np.float32)
    if threshold is not None:
        originals, similarity = _originals(embeddings, firsts, seconds, threshold, length_ratio, progress)
    groups: dict[int, list[Copy]] = {}
    for number in np.lexsort((np.arange(len(firsts)), -similarity)).tolist():
        original = int(originals[number])
        groups.setdefault(original, []).extend(
            Copy(recordings[row], min(1.0, float(similarity[number])), original == number)
            for row in same[recordings[firsts[number]].digest]
        )
    found = [
        DuplicateGroup(tuple(sorted(copies, key=lambda copy: not copy.identical)))
        for copies in groups.values()
        if len(copies) > 1
    ]
    return sorted(found, key=lambda group: (group.original.path, group.original.member))


def _age(recording: Recording) -> tuple[int, float, str, str]:
    return recording.mtime_ns, -recording.seconds, recording.path, recording.member


def _originals(
    embeddings: np.ndarray,
    rows: np.ndarray,
    seconds: np.ndarray,
    threshold: float,
    length_ratio: float,
    progress: Callable[[int], object] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `rows`, oldest first: the number of its original, itself if it is one, and their similarity.

    An original is a recording that is similar to no earlier original; a copy belongs to the most similar one before it.
    """
    count = len(rows)
    originals = np.arange(count)
    similarity = np.ones(count, np.float32)
    is_copy = np.zeros(count, bool)

    def assign(original: np.ndarray, copies: np.ndarray, scores: np.ndarray) -> None:
        better = ~is_copy[copies] | (scores > similarity[copies])
        originals[copies[better]], similarity[copies[better]] = original[better], scores[better]
        is_copy[copies] = True

    def similar(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of `second` that are similar to any of `first`; similarities `[first, those]`, -inf if not enough."""
        scores = embeddings[rows[first]] @ embeddings[rows[second]].T
        hit = scores.max(axis=0) >= threshold - _ROUNDING  # mostly few
        second, scores = second[hit], scores[:, hit]
        longer = np.maximum(seconds[first][:, None], seconds[second])
        shorter = np.minimum(seconds[first][:, None], seconds[second])
        near = (scores >= threshold - _ROUNDING) & (longer <= length_ratio * shorter) & (first[:, None] < second)
        return second, np.where(near, scores, -np.inf)

    for begin in range(0, count, _ROWS):
        end = min(begin + _ROWS, count)
        candidates = np.arange(begin, end)[~is_copy[begin:end]]
        if len(candidates):
            later, scores = similar(candidates, candidates)
            for position, candidate in enumerate(candidates.tolist()):
                if not is_copy[candidate]:
                    near = scores[position] > -np.inf
                    assign(np.full(near.sum(), candidate), later[near], scores[position, near])
        found = candidates[~is_copy[candidates]]
        for column in range(begin, count if len(found) else begin, _COLUMNS):
            others = np.arange(column, min(column + _COLUMNS, count))
            others, scores = similar(found, others[(others >= end) | is_copy[others]])
            best = scores.argmax(axis=0)
            highest = scores[best, np.arange(len(others))]
            near = highest > -np.inf
            assign(found[best[near]], others[near], highest[near])
        if progress is not None:
            progress(end - begin)
    return originals, similarity
