"""Moments from scored windows: overlapping hits of one recording are one result.

The rule, from the best window down; of equal scores the window with the lower id comes first:

- A window that overlaps a moment already found in its recording is part of it, and not listed again.
- Any other window begins a moment. The moment grows, again and again, over the windows of its recording that overlap
  it, score at least the `growth_limit` of its first window and overlap no earlier moment. Embeddings of a whole
  recording do not take part in growth, since they would swallow the rest.

So a moment depends on better ones alone: a longer list of results begins with the shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

GROWTH = 0.9
"""Least score, as a share of the moment's best, of a window over which it grows; see `growth_limit`."""

_REACH = 30.0  # seconds on each side of a moment that are looked at first


class ScoredWindow(NamedTuple):
    """A window of a recording with its score."""

    id: int
    recording: int
    start: float
    end: float
    whole: bool
    score: float


class Span(NamedTuple):
    """A moment before it has the name of its recording: `best` is its first window."""

    best: ScoredWindow
    start: float
    end: float


Near = Callable[[int, float, float], Sequence[ScoredWindow]]
"""The windows of a recording that overlap a stretch of seconds, with their scores."""


def merge_windows(
    windows: Iterable[ScoredWindow], near: Near, *, taken: Iterable[tuple[int, float, float]] = ()
) -> Iterator[Span]:
    """The moments of windows that come in descending order of score, in the same order.

    Args:
        windows: the best ones of a library, or all.
        near: also gives windows that are not in `windows`.
        taken: recording, start and end of stretches in which nothing is listed.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for recording, start, end in taken:
        found.setdefault(recording, []).append((start, end))
    for window in windows:
        earlier = found.setdefault(window.recording, [])
        if _overlaps(window.start, window.end, earlier):
            continue
        start, end = (window.start, window.end) if window.whole else _grown(window, near, earlier)
        earlier.append((start, end))
        yield Span(window, start, end)


def growth_limit(best: float) -> float:
    """Least score of a window over which a moment of the score `best` grows: 10 % below it, also if it is negative."""
    return best - (1 - GROWTH) * abs(best)


def _grown(best: ScoredWindow, near: Near, earlier: Sequence[tuple[float, float]]) -> tuple[float, float]:
    start, end, reach = best.start, best.end, _REACH
    while True:
        # Only a neighborhood is read, since a recording may last for days; a larger one if the moment reaches its edge.
        left, right = start - reach, end + reach
        candidates = [
            window
            for window in near(best.recording, left, right)
            if not window.whole
            and window.score >= growth_limit(best.score)
            and not _overlaps(window.start, window.end, earlier)
        ]
        start, end = _joined(start, end, candidates)
        # A window that overlaps the moment begins before its end: beyond what was read, there may be more.
        if left <= start and end <= right:
            return start, end
        reach *= 4


def _joined(start: float, end: float, windows: Sequence[ScoredWindow]) -> tuple[float, float]:
    """A stretch with all windows that overlap it, or overlap what it becomes."""
    by_start, by_end = sorted(windows, key=lambda w: w.start), sorted(windows, key=lambda w: w.end, reverse=True)
    before = None
    while before != (start, end):
        before = start, end
        # Each pass takes a chain of windows; a second round is needed only where one covers others.
        for window in (*by_start, *by_end):
            if window.start < end and window.end > start:
                start, end = min(start, window.start), max(end, window.end)
    return start, end


def _overlaps(start: float, end: float, spans: Sequence[tuple[float, float]]) -> bool:
    return any(start < other_end and end > other_start for other_start, other_end in spans)
