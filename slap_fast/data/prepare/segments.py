"""Segments: table rows for a part of a longer recording, by the columns `offset` and `duration` in seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.errors import AudioError
from slap_fast.data.format.captions import is_missing
from slap_fast.errors import SlapFastError

_START_COLUMNS = ("start", "start_time", "start_seconds", "begin", "begin_time", "onset", "segment_start")
_SLACK = 0.05  # seconds that a segment may extend beyond the end, because durations are rounded


class SegmentError(SlapFastError, ValueError):
    """A row gives an invalid segment."""


@dataclass(frozen=True)
class Segment:
    """A segment from `offset` seconds on, `duration` seconds long (None: to the end)."""

    offset: float
    duration: float | None

    def __str__(self) -> str:
        return f"{self.offset:g}s-{'end' if self.duration is None else f'{self.offset + self.duration:g}s'}"


class SegmentSound:
    """A segment of an open recording. Decodes from the start of the recording to the end of the segment.

    Attributes:
        samplerate, channels, notes: of the recording, see `AudioSource`.
    """

    def __init__(self, sound: AudioSource, segment: Segment) -> None:
        self.samplerate = sound.samplerate
        self.channels = sound.channels
        self.notes = sound.notes
        self._sound = sound
        self._segment = segment

    @property
    def declared_seconds(self) -> float | None:
        return self._segment.duration

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the sample rate in Hz and a non-empty `[n]` float32 block.

        Raises:
            AudioError: `no_samples` if the segment starts after the end, `truncated` if it extends more than 0.05 s
                beyond it; or the error of the recording.
        """
        offset, duration = self._segment.offset, self._segment.duration
        end = math.inf if duration is None else offset + duration
        elapsed = 0.0
        some = False
        # Concatenated streams may have different rates.
        for rate, group in itertools.groupby(self._sound.blocks(), lambda block: block[0]):
            start = max(0, round((offset - elapsed) * rate))
            stop = None if duration is None else round((end - elapsed) * rate)
            position = 0
            for _, block in group:
                piece = block[max(0, start - position) : None if stop is None else max(0, stop - position)]
                position += len(block)
                if len(piece):
                    some = True
                    yield rate, piece
                if stop is not None and position >= stop:
                    return
            elapsed += position / rate
        length = f"the row needs {self._segment}, the recording lasts {elapsed:.2f} s"
        if not some:
            raise AudioError("no_samples", length)
        if duration is not None and end - elapsed > _SLACK:
            raise AudioError("truncated", length)


def segment_of(row: dict[str, Any]) -> Segment | None:
    """The segment of a row, or None: a `duration` without `offset` is only the length of the file.

    Raises:
        SegmentError: offset or duration is not a valid number.
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
    # In a table with `onset`, `offset` is the end of an event.
    return "offset" in names and "onset" not in names


def start_of(row: dict[str, Any]) -> tuple[str, Any] | None:
    """The column that may be a start time of a segment, and its value: the row may be a segment or the whole file."""
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
