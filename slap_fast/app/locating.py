"""Locating: similarity of a recording of any length to a text over time, and its spectrogram, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from slap_fast.app.errors import PageError
from slap_fast.app.listener import Listener
from slap_fast.app.pictures import clock
from slap_fast.app.sounds import Sound
from slap_fast.audio.waveform import mono_blocks
from slap_fast.library.recording_audio import open_named

MAX_LOCATED_SECONDS = 12 * 3600.0
"""Longest recording that the page looks through; `slap-fast locate` has no limit."""

_PART_SECONDS = 30.0


class Curve(NamedTuple):
    """Similarity over time: centers in seconds `[C]`, similarities `[C]`, and seconds of the recording."""

    times: np.ndarray
    similarity: np.ndarray
    seconds: float


class Event(NamedTuple):
    """A stretch that resembles the query: begin and end in seconds, and its highest similarity."""

    start: float
    end: float
    score: float


def similarity_curve(listener: Listener, sound: Sound, vector: np.ndarray, sample_rate: int) -> Curve:
    """The similarity of a recording to a query `[D]` over time.

    Raises:
        PageError: it is longer than `MAX_LOCATED_SECONDS`, or has no samples.
        AudioError: it cannot be read.
    """
    times, scores, position = [], [], 0
    with open_named(sound.path, sound.member) as source:
        for part in _parts(mono_blocks(source, sample_rate), round(_PART_SECONDS * sample_rate)):
            centers, columns = listener.columns(part)
            times.append(position / sample_rate + centers)
            scores.append(columns @ vector)
            position += len(part)
            if position > MAX_LOCATED_SECONDS * sample_rate:
                raise PageError(
                    f"the recording is longer than {clock(MAX_LOCATED_SECONDS)}; use `slap-fast locate` instead"
                )
    if not position:
        raise PageError("the recording has no samples")
    return Curve(np.concatenate(times), np.concatenate(scores), position / sample_rate)


def find_events(curve: Curve, threshold: float) -> list[Event]:
    """The stretches whose similarity is at least `threshold`, best first."""
    half = (curve.times[1] - curve.times[0]) / 2 if len(curve.times) > 1 else curve.seconds / 2
    above = np.concatenate([[False], curve.similarity >= threshold, [False]])
    edges = np.flatnonzero(above[1:] != above[:-1]).reshape(-1, 2)
    events = [
        Event(
            max(0.0, float(curve.times[first] - half)),
            min(curve.seconds, float(curve.times[last - 1] + half)),
            float(curve.similarity[first:last].max()),
        )
        for first, last in edges
    ]
    return sorted(events, key=lambda event: -event.score)


def _parts(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    held = np.empty(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= 2 * size:  # so that the last part is not too short to be heard
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held
