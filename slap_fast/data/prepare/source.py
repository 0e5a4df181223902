"""Source protocol: captioned audio as a stream of `ClipItem` and `Rejection`, and where the audio of an item is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.containers import ByteView, StreamPart
from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import open_audio
from slap_fast.data.format.captions import captions_of
from slap_fast.data.prepare.segments import Segment, SegmentSound


class GeneratedClip(Protocol):
    """A clip that is generated, not read. It must be small and picklable: a worker process calls `render`."""

    @property
    def key(self) -> str: ...

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    def render(self) -> np.ndarray:
        """`[S]` float32 waveform at 16 kHz."""
        ...


class StoredAudio(Protocol):
    """Audio that a worker process opens and decodes. It must be picklable."""

    def open(self) -> contextlib.AbstractContextManager[AudioSource]:
        """Raises AudioError if it cannot be used."""
        ...


@dataclass(frozen=True)
class FileAudio:
    """An audio file."""

    path: Path

    def open(self) -> contextlib.AbstractContextManager[AudioSource]:
        return open_audio(self.path)


@dataclass(frozen=True)
class BytesAudio:
    """The bytes of an audio file, from a table."""

    data: bytes = field(repr=False)

    def open(self) -> contextlib.AbstractContextManager[AudioSource]:
        return open_audio(self.data)


@dataclass(frozen=True)
class TarAudio:
    """A member of a tar, read in place."""

    path: Path
    offset: int
    size: int
    name: str = ""

    @contextlib.contextmanager
    def open(self) -> Iterator[AudioSource]:
        if self.size == 0:
            raise AudioError("empty_file", "0 bytes")
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise AudioError("unreadable", f"{self.path} ({error.strerror})") from error
        member = ByteView(file, StreamPart(self.offset, self.offset + self.size))
        with file, open_audio(member, name=self.name) as sound:
            yield sound


@dataclass(frozen=True)
class SegmentAudio:
    """A segment of a recording."""

    audio: StoredAudio
    segment: Segment

    @contextlib.contextmanager
    def open(self) -> Iterator[SegmentSound]:
        with self.audio.open() as sound:
            yield SegmentSound(sound, self.segment)


@dataclass(frozen=True)
class RenderedAudio:
    """Audio that a worker process generates."""

    clip: GeneratedClip


@dataclass(frozen=True)
class ClipItem:
    """One clip of a source.

    Attributes:
        name: name in the source; its key in the tar is derived from it.
        captions: clean and not empty.
        audio: where the audio is.
        origin: file, row or tar member, for the report and the clip's JSON.
        metadata: further JSON values stored with the clip.
        seen: number of files, rows or members of the source in this clip: itself and those merged into it.
    """

    name: str
    captions: Sequence[str]
    audio: StoredAudio | RenderedAudio
    origin: str
    metadata: dict[str, Any] = field(default_factory=dict)
    seen: int = 1


@dataclass(frozen=True)
class Rejection:
    """A clip, row or file of a source that is left out of the dataset, and the reason. `seen`: see `ClipItem`."""

    origin: str
    reason: str
    detail: str
    seen: int = 1


class Source(Protocol):
    """Captioned audio in a fixed order.

    Attributes:
        name: default name of the dataset.
        seen: number of files, rows or members, after an iteration: the sum of `seen` over the items.
    """

    name: str
    seen: int

    def describe(self) -> dict[str, Any]:
        """JSON values that determine what iteration yields; a resumed run compares them."""
        ...

    def count(self) -> int | None:
        """Number of items, for the progress bar; None if it is not known before iterating."""
        ...

    def __iter__(self) -> Iterator[ClipItem | Rejection]: ...


class GeneratedSource:
    """A source of generated clips, such as the synthetic dataset.

    Args:
        clips: an iterable, or a function that returns a new one (for several iterations).
        name: default name of the dataset.
        description: JSON values that determine the clips (seed, split).
        total: number of clips, for the progress bar.
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
