"""What a source of captioned audio yields, and how each kind of audio becomes FLAC."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slap_fast.audio.containers import ByteView, StreamPart
from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import AudioFile, open_audio
from slap_fast.data.format.captions import captions_of
from slap_fast.data.prepare.segments import Segment, SegmentSound


class GeneratedClip(Protocol):
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
        with file, open_audio(ByteView(file, StreamPart(self.offset, self.offset + self.size))) as sound:
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
    clip: GeneratedClip


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


class Source(Protocol):
    """Captioned audio in an order that never changes.

    Attributes:
        name: what the dataset is called.
        seen: files, rows or members met, once an iteration has ended: the sum of `seen` over what it yielded.
    """

    name: str
    seen: int

    def describe(self) -> dict[str, Any]:
        """JSON values that decide what iteration yields: a resumed run must find them unchanged."""
        ...

    def count(self) -> int | None:
        """How many items iteration yields, for the progress bar; None where only iterating would tell."""
        ...

    def __iter__(self) -> Iterator[ClipItem | Rejection]: ...


class GeneratedSource:
    """Clips that are made, not read, such as the synthetic dataset's.

    Args:
        clips: makes the iterator anew; or an iterable that is consumed once.
        name: of the dataset.
        description: JSON values that decide what the clips are (a seed, a split).
        total: their number, for the progress bar.
    """

    def __init__(
        self,
        clips: Callable[[], Iterable[GeneratedClip]] | Iterable[GeneratedClip],
        name: str,
        description: dict[str, Any],
        total: int | None = None,
    ) -> None:
        self.name = name
        self.seen = 0
        self._clips = clips
        self._description = description
        self._total = total

    def describe(self) -> dict[str, Any]:
        return {"kind": "clips", "name": self.name, **self._description}

    def count(self) -> int | None:
        return self._total

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = 0
        for clip in self._clips() if callable(self._clips) else self._clips:
            self.seen += 1
            yield ClipItem(clip.key, captions_of(list(clip.captions)), RenderedAudio(clip), clip.key, clip.metadata)
