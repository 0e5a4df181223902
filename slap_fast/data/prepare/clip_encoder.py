"""Clip encoder: converts the audio of one clip to 16 kHz mono FLAC. Runs in the worker processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slap_fast.audio.errors import AudioError
from slap_fast.audio.flac_encoder import Flac, encode_flac
from slap_fast.audio.waveform import mono_blocks
from slap_fast.data.format.captions import MAX_CAPTIONS
from slap_fast.data.format.dataset_files import SAMPLE_RATE, writing
from slap_fast.data.prepare.source import ClipItem, Rejection, RenderedAudio


@dataclass(frozen=True)
class EncodedClip:
    """A clip as stored, the format of its source, and notes for the report as `(reason, detail)`."""

    flac: Flac
    source_sample_rate: int
    source_channels: int
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ClipEncoder:
    """Converts a clip to 16 kHz mono FLAC, or returns the Rejection. Called in the worker processes.

    Attributes:
        folder: folder for FLAC streams that are too large for memory.
        min_duration: seconds.
        max_duration: seconds; None for no limit.
    """

    folder: Path
    min_duration: float
    max_duration: float | None

    def __call__(self, item: ClipItem | Rejection) -> EncodedClip | Rejection:
        if isinstance(item, Rejection):
            return item
        if not item.captions:
            return Rejection(item.origin, "no_captions", "no caption, or only empty ones")
        if len(item.captions) > MAX_CAPTIONS:
            return Rejection(item.origin, "too_many_captions", f"{len(item.captions)}, more than {MAX_CAPTIONS}")
        try:
            if isinstance(item.audio, RenderedAudio):
                waveform = np.asarray(item.audio.clip.render(), np.float32)
                flac = self._encode(iter([waveform]))
                return EncodedClip(flac, SAMPLE_RATE, 1, tuple(_notes(flac)))
            with item.audio.open() as sound:
                seconds = sound.declared_seconds
                if self.max_duration is not None and seconds is not None and seconds > self.max_duration + 1:
                    raise AudioError("too_long", f"{seconds:.1f} s, more than {self.max_duration} s")
                flac = self._encode(mono_blocks(sound, SAMPLE_RATE))
                return EncodedClip(flac, sound.samplerate, sound.channels, (*sound.notes, *_notes(flac)))
        except AudioError as error:
            return Rejection(item.origin, error.reason, error.detail)

    def _encode(self, blocks: Iterator[np.ndarray]) -> Flac:
        spill = self.folder / f"{uuid.uuid4().hex}.flac"
        with writing(spill):
            return encode_flac(
                blocks, spill, sample_rate=SAMPLE_RATE, min_seconds=self.min_duration, max_seconds=self.max_duration
            )


def _notes(flac: Flac) -> list[tuple[str, str]]:
    notes = []
    if flac.silent:
        notes.append(("silent", "every sample is zero"))
    if flac.clipped:
        detail = f"{flac.clipped} of {flac.samples} samples were beyond full scale, by up to {flac.peak:.3g} times"
        notes.append(("clipped", detail))
    if not flac.seekable:
        notes.append(("no_seek_table", "this libsndfile writes FLAC in an unknown way: no parallel decoding"))
    return notes
