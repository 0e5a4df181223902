"""From a curve of probabilities to events: smoothing, threshold, gaps and shortest duration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MAX_SMOOTH = 600.0  # seconds of the median filter, whose time grows with them
_MEDIAN_VALUES = 2**22  # that are sorted at a time


@dataclass(frozen=True)
class EventRule:
    """When a curve is an event. The steps are taken in the order of the attributes.

    Attributes:
        smooth: seconds of the median filter over the curve, at most `MAX_SMOOTH`; 0: none.
        threshold: probability from which on a moment is part of an event.
        max_gap: seconds; events with at most this between them are one.
        min_duration: seconds; shorter events are left out.

    Raises:
        ValueError: a value is out of range.
    """

    smooth: float = 0.5
    threshold: float = 0.5
    max_gap: float = 0.5
    min_duration: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold:g}; it is a probability, above 0 and below 1")
        for name in ("smooth", "max_gap", "min_duration"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value:g}; it must be a number of seconds of at least 0")
        if self.smooth > MAX_SMOOTH:
            raise ValueError(f"smooth is {self.smooth:g}; at most {MAX_SMOOTH:g} seconds")


@dataclass(frozen=True)
class Event:
    """A sound event in a recording.

    Attributes:
        query: the text that found it.
        start: seconds from the start of the recording, to a millisecond.
        end: seconds from the start of the recording, to a millisecond.
        probability: the highest one in it, after smoothing.
        similarity: the highest cosine similarity in it.
    """

    query: str
    start: float
    end: float
    probability: float
    similarity: float


def smoothed_curve(curve: np.ndarray, width: int) -> np.ndarray:
    """`[C]` running median over an odd number of values, with the first and last value repeated at the ends."""
    import numpy as np  # not at the top: `slap-fast --help` reads this module

    half = width // 2
    if not half or not len(curve):
        return curve
    padded = np.pad(curve, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    # The median copies the windows: all at once, those of a long recording may not fit into memory.
    step = max(1, _MEDIAN_VALUES // (2 * half + 1))
    parts = [np.median(windows[first : first + step], axis=1) for first in range(0, len(windows), step)]
    return np.concatenate(parts).astype(curve.dtype)


def active_columns(probability: np.ndarray, column_seconds: float, rule: EventRule, seconds: float) -> np.ndarray:
    """`[C]` bool: the columns that are part of an event; arguments as of `event_columns`."""
    import numpy as np  # not at the top: `slap-fast --help` reads this module

    active = np.zeros(len(probability), dtype=bool)
    for first, end in event_columns(probability, column_seconds, rule, seconds):
        active[first:end] = True
    return active


def event_columns(
    probability: np.ndarray, column_seconds: float, rule: EventRule, seconds: float
) -> list[tuple[int, int]]:
    """First column of each event, and the one after its last, ascending.

    Args:
        probability: `[C]`, of each column.
        column_seconds: duration of a column.
        rule: of events.
        seconds: duration of the recording, in which the last column may end early; so does an event in it.
    """
    import numpy as np  # not at the top: `slap-fast --help` reads this module

    curve = smoothed_curve(probability, _odd(rule.smooth / column_seconds))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], curve >= rule.threshold, [False]]).astype(np.int8)))
    runs: list[tuple[int, int]] = []
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        # Rounded, so that a gap of exactly max_gap is one.
        if runs and round((first - runs[-1][1]) * column_seconds, 6) <= rule.max_gap:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return [
        (first, end)
        for first, end in runs
        if round(min(end * column_seconds, seconds) - first * column_seconds, 6) >= rule.min_duration
    ]


def find_events(
    query: str,
    probability: np.ndarray,
    similarity: np.ndarray,
    *,
    column_seconds: float,
    seconds: float,
    rule: EventRule,
) -> list[Event]:
    """The events of one query.

    Args:
        probability: `[C]`, of each column.
        similarity: `[C]`, of each column.
        column_seconds: duration of a column.
        seconds: duration of the recording, in which the last column may end early.
    """
    curve = smoothed_curve(probability, _odd(rule.smooth / column_seconds))
    return [
        Event(
            query,
            round(first * column_seconds, 3),
            round(min(end * column_seconds, seconds), 3),
            float(curve[first:end].max()),
            float(similarity[first:end].max()),
        )
        for first, end in event_columns(probability, column_seconds, rule, seconds)
    ]


def _odd(columns: float) -> int:
    """The odd number nearest to a number of columns."""
    return 2 * max(0, round((columns - 1) / 2)) + 1
