"""What a source of captioned audio yields, and how each kind of audio becomes FLAC."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slap_fast.audio.files import AudioError, AudioFile, Flac, encode_flac, mono_blocks, open_audio
from slap_fast.audio.streams import ByteView, Part
from slap_fast.data.format.captions import MAX_CAPTIONS
from slap_fast.data.format.dataset_files import SAMPLE_RATE, writing
from slap_fast.data.prepare.segments import Segment, SegmentSound


class Clip(Protocol):
    """A clip that is made, not read: light and picklable until `render` is called, which a worker process does."""

    @property
    def key(self) -> str: ...

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    def render(self) -> np.ndarray:
        """`[S]` float32 waveform at 16 kHz."""
        ...


@dataclass(frozen=True)
class FileAudio:
    path: Path

    @contextlib.contextmanager
    def open(self) -> Iterator[AudioFile]:
        with open_audio(self.path) as sound:
            yield sound


@dataclass(frozen=True)
class BytesAudio:
    data: bytes = field(repr=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[AudioFile]:
        with open_audio(self.data) as sound:
            yield sound


@dataclass(frozen=True)
class TarAudio:
    """A member of a tar, read in place."""

    path: Path
    offset: int
    size: int

    @contextlib.contextmanager
    def open(self) -> Iterator[AudioFile]:
        if self.size == 0:
            raise AudioError("empty_file", "0 bytes")
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise AudioError("unreadable", f"{self.path} ({error.strerror})") from error
        with file, open_audio(ByteView(file, Part(self.offset, self.offset + self.size))) as sound:
            yield sound


@dataclass(frozen=True)
class SegmentAudio:
    """A stretch of a recording."""

    audio: FileAudio | BytesAudio
    segment: Segment

    @contextlib.contextmanager
    def open(self) -> Iterator[SegmentSound]:
        with self.audio.open() as sound:
            yield SegmentSound(sound, self.segment)


@dataclass(frozen=True)
class RenderedAudio:
    clip: Clip


@dataclass(frozen=True)
class ClipItem:
    """One clip of a source.

    Attributes:
        name: the source's name for it, from which its key in the tar is made.
        captions: clean, none empty.
        audio: where the audio comes from.
        origin: file, row or member, for the report and the clip's JSON.
        metadata: JSON values that travel with the clip.
        seen: files, rows or members of the source that it stands for: itself, and what was merged into it.
    """

    name: str
    captions: Sequence[str]
    audio: FileAudio | BytesAudio | TarAudio | SegmentAudio | RenderedAudio
    origin: str
    metadata: dict[str, Any] = field(default_factory=dict)
    seen: int = 1


@dataclass(frozen=True)
class Rejection:
    """A clip, row or file of a source that does not go into the dataset, and why; `seen` as of a `ClipItem`."""

    origin: str
    reason: str
    detail: str
    seen: int = 1


@dataclass(frozen=True)
class EncodedClip:
    """A clip as stored, what its source was, and `(reason, detail)` of what a report should say of it."""

    flac: Flac
    source_sample_rate: int
    source_channels: int
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ClipEncoder:
    """Turns a clip into 16 kHz mono FLAC, or says why it cannot be: what a worker process runs.

    Attributes:
        folder: where FLAC streams too large for memory go.
        min_duration: seconds.
        max_duration: seconds; None keeps any length.
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
    if flac.silent:
        return [("silent", "every sample is zero")]
    if flac.clipped:
        detail = f"{flac.clipped} of {flac.samples} samples were beyond full scale, by up to {flac.peak:.3g} times"
        return [("clipped", detail)]
    return []
