"""Rows that mean a stretch of a longer recording: columns `offset` and `duration`, in seconds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from slap_fast.audio_files import AudioError
from slap_fast.data.captions import is_missing

_START_COLUMNS = ("start", "start_time", "start_seconds", "begin", "begin_time", "onset", "segment_start")
_SLACK = 0.05  # seconds a stretch may reach beyond the end: durations are rounded


class SegmentError(ValueError):
    """A row that asks for a stretch that cannot be."""


@dataclass(frozen=True)
class Segment:
    """From `offset` seconds, `duration` seconds long, or to the end."""

    offset: float
    duration: float | None

    def __str__(self) -> str:
        return f"{self.offset:g}s-{'end' if self.duration is None else f'{self.offset + self.duration:g}s'}"

    def cut(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
        """The stretch of a recording that is given as `[n]` blocks at `sample_rate` Hz; reads no further than it must.

        Raises:
            AudioError: `no_samples` if it begins beyond the end, `truncated` if it reaches more than 0.05 s beyond.
        """
        start = round(self.offset * sample_rate)
        stop = None if self.duration is None else start + max(1, round(self.duration * sample_rate))
        position = 0
        for block in blocks:
            end = position + len(block)
            if end > start:
                yield block[max(0, start - position) : None if stop is None else stop - position]
            position = end
            if stop is not None and position >= stop:
                return
        length = f"the recording lasts {position / sample_rate:.2f} s"
        if position <= start:
            raise AudioError("no_samples", f"the row asks for {self}; {length}")
        if stop is not None and stop - position > _SLACK * sample_rate:
            raise AudioError("truncated", f"the row asks for {self}; {length}")


def segment_of(row: dict[str, Any]) -> Segment | None:
    """The stretch that a row asks for, or None: `duration` without `offset` only describes the file.

    Raises:
        SegmentError: offset or duration is no such number.
    """
    names = {name.strip().lower(): name for name in row}
    if not _offset_is_a_start(names):
        return None
    offset = _seconds(names["offset"], row[names["offset"]])
    duration = _seconds(names["duration"], row[names["duration"]]) if "duration" in names else None
    if offset is None or (offset == 0 and duration is None):
        return None
    if duration == 0:
        raise SegmentError("duration is 0; it must be above 0 seconds")
    return Segment(offset, duration)


def _offset_is_a_start(names: Collection[str]) -> bool:
    # Beside `onset`, it is where an event ends.
    return "offset" in names and "onset" not in names


def start_of(row: dict[str, Any]) -> tuple[str, Any] | None:
    """A column that may or may not mean that the row is a stretch of its file, and its value."""
    names = {name.strip().lower(): name for name in row}
    if _offset_is_a_start(names):
        return None
    return next(((name, row[name]) for lower, name in names.items() if lower in _START_COLUMNS), None)


def _seconds(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, str) and is_missing(value)):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.inf
    if math.isnan(seconds):
        return None
    if not 0 <= seconds < math.inf:
        raise SegmentError(f"{name} is {value!r:.50}; it must be a number of seconds, 0 or more")
    return seconds
