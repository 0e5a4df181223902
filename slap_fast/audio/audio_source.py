"""Audio source protocol: an open file as mono blocks, and the rule for files that are shorter than they declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from slap_fast.audio.errors import AudioError

MAX_SHORTFALL = 0.05
"""A file that lacks more than this share of its declared audio is truncated."""

_NOTED_SECONDS = 0.05  # a smaller shortfall is an effect of the codec


class AudioSource(Protocol):
    """An open audio file, or a segment of one; see `AudioFile`."""

    samplerate: int
    channels: int
    notes: list[tuple[str, str]]

    @property
    def declared_seconds(self) -> float | None: ...

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]: ...


def check_length(seconds: float, declared: float | None, notes: list[tuple[str, str]]) -> None:
    """Compare the length that could be read with the declared one: note a small shortfall, reject a large one.

    Raises:
        AudioError: `truncated`.
    """
    if not declared or seconds >= declared - _NOTED_SECONDS:
        return
    detail = f"the header declares {declared:.2f} s, {seconds:.2f} s can be decoded"
    if seconds < declared * (1 - MAX_SHORTFALL):
        raise AudioError("truncated", detail)
    if "cut_short" not in dict(notes):
        notes.append(("cut_short", detail))


class Loudness:
    """Mean square of a waveform, to detect floats at the scale of integers."""

    def __init__(self) -> None:
        self._energy = 0.0
        self._samples = 0

    def add(self, mono: np.ndarray) -> None:
        self._energy += float(np.square(mono, dtype=np.float64).sum())
        self._samples += len(mono)

    def check(self) -> None:
        """Raise AudioError (`out_of_range`) if the waveform cannot be one within [-1, 1]."""
        if self._energy > self._samples:
            # A waveform within [-1, 1] has a mean square of at most 1.
            raise AudioError(
                "out_of_range",
                f"float samples with a root mean square of {(self._energy / self._samples) ** 0.5:.4g}, where full "
                "scale is 1: stored at the scale of integers; divide them (by 32768 for 16 bits)",
            )
