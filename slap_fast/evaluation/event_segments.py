"""Segments of events, and their F1: the segment-based metric of sed_eval (Mesaros et al., 2016).

A class is active in a segment of one second if any of its events overlaps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slap_fast.evaluation.localization import EventSpan

SEGMENT_SECONDS = 1.0


@dataclass(frozen=True)
class EventTiming:
    """Frames, segments and classes of events: start and end of an event to rows of a matrix."""

    frame_seconds: float
    number: dict[str, int]  # class to column

    def frames(self, events: Sequence[EventSpan], count: int) -> np.ndarray:
        """`[F, C]` bool: a frame is active if an event covers its center; each event has a frame at least."""
        active = np.zeros((count, len(self.number)), dtype=bool)
        centers = (np.arange(len(active)) + 0.5) * self.frame_seconds
        for event in events:
            rows = (centers >= event.start) & (centers < event.end)
            middle = int((event.start + event.end) / 2 / self.frame_seconds)
            rows[min(max(middle, 0), len(rows) - 1)] = True
            active[rows, self.number[event.text]] = True
        return active

    def true_segments(self, events: Sequence[EventSpan], seconds: float) -> np.ndarray:
        """`[S, C]` bool: from the segment of an event's start to the last one before its end."""
        segments = np.zeros((segment_count(seconds), len(self.number)), dtype=bool)
        for event in events:
            first, end = int(event.start // SEGMENT_SECONDS), segment_count(event.end)
            segments[max(first, 0) : max(end, first + 1), self.number[event.text]] = True
        return segments

    def predicted_segments(self, active: np.ndarray, seconds: float) -> np.ndarray:
        """`[S, C]` bool: segments that an active frame of `[F, C]` overlaps."""
        segments = np.zeros((segment_count(seconds), active.shape[1]), dtype=bool)
        starts = np.arange(len(active)) * self.frame_seconds
        # Rounded, so that a frame that ends at a full second is not in the next one.
        first = np.floor(np.round(starts / SEGMENT_SECONDS, 6)).astype(int)
        last = np.ceil(np.round((starts + self.frame_seconds) / SEGMENT_SECONDS, 6)).astype(int) - 1
        for offset in range(int((last - first).max(initial=0)) + 1):
            rows = np.minimum(np.minimum(first + offset, last), len(segments) - 1)
            np.logical_or.at(segments, rows, active)
        return segments


def segment_count(seconds: float) -> int:
    """Number of segments of a clip; a partial one at the end counts as one."""
    return max(1, int(np.ceil(round(seconds / SEGMENT_SECONDS, 6))))


def segment_counts(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """`[4, C]`: true and false positives, false negatives and inactive segments of `[S, C]` bool."""
    hits, wrong, missed = (expected & found).sum(0), (found & ~expected).sum(0), (expected & ~found).sum(0)
    return np.stack([hits, wrong, missed, len(found) - expected.sum(0)])


def f1_score(counts: np.ndarray) -> np.ndarray:
    """F1 of `[3 or more, ...]` true positives, false positives and false negatives; NaN where all are 0."""
    hits, wrong, missed = counts[:3]
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / (2 * hits + wrong + missed))


def micro_f1(rows: np.ndarray) -> float:
    """F1 of `[N, 4]` counts of clips; 0 for clips without any event in truth and prediction."""
    return float(np.nan_to_num(f1_score(rows.sum(0))))
