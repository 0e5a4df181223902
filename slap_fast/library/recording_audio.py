"""Audio of a recording of a library: a file, or a clip of a prepared dataset, decoded by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from slap_fast.audio.errors import AudioError
from slap_fast.audio.media_file import MediaFile
from slap_fast.audio.reader import AudioFile, open_audio
from slap_fast.audio.waveform import mono_blocks
from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME, DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.library.database import Recording

CHANGED_WHILE_READ = "changed_while_read"
"""Reason of an `AudioError` of a clip, and of a failed recording: to be read again by the next update."""


@contextmanager
def open_recording(recording: Recording) -> Iterator[AudioFile | MediaFile]:
    """Open the audio of a recording; `blocks()` and `slap_fast.audio.waveform.mono_blocks` read it once.

    Raises:
        AudioError: the file is missing or unreadable, or the dataset has no clip of this key any more.
        DatasetError: the dataset is missing or damaged.
    """
    with open_named(recording.path, recording.member) as sound:
        yield sound


@contextmanager
def open_named(path: str, member: str = "") -> Iterator[AudioFile | MediaFile]:
    """As `open_recording`, by path and key."""
    with open_audio(_clip_bytes(path, member) if member else path, name=member) as sound:
        yield sound


def read_moment(path: str, member: str, start: float, end: float, sample_rate: int) -> np.ndarray:
    """The samples of a recording between two times, `[S]` float32 mono at `sample_rate` Hz.

    Decodes from the begin of the recording if its format cannot be entered in the middle exactly. Shorter than asked
    for if the recording ends before `end`.

    Args:
        path: of the file or of the prepared dataset.
        member: key of the clip in the dataset; empty for a file.
        start: seconds, at least 0.
        end: seconds, above `start`.
        sample_rate: Hz, of the result.

    Raises:
        AudioError: as `open_recording`; or the recording ends before `start`, because it has changed.
        ValueError: `end` is not above `start`, or `start` is negative.
    """
    return np.concatenate(list(moment_blocks(path, member, start, end, sample_rate)))


def moment_blocks(path: str, member: str, start: float, end: float, sample_rate: int) -> Iterator[np.ndarray]:
    """As `read_moment`, in blocks, for moments of any length."""
    if not 0 <= start < end:
        raise ValueError(f"start is {start:g} s and end {end:g} s; pass 0 <= start < end")
    is_empty = True
    with open_named(path, member) as sound:
        for block in _between(
            blocks_from(sound, start, sample_rate), round(start * sample_rate), round(end * sample_rate)
        ):
            is_empty = False
            yield block
    if is_empty:
        name = f"{path}#{member}" if member else path
        raise AudioError("no_samples", f"{name} ends before {start:g} s: it has changed; index it again")


def blocks_from(sound: AudioFile | MediaFile, start: float, sample_rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """`mono_blocks`, each with the position of its first sample, from the begin or a second before `start` on.

    The second is for the resampler, which knows nothing of what was skipped. A whole number of seconds is skipped, so
    the samples are those of the resampled whole, up to rounding.
    """
    position = sample_rate * sound.skip(int(start) - 1)
    for block in mono_blocks(sound, sample_rate):
        yield position, block
        position += len(block)


def clip_digest(path: str, member: str) -> bytes:
    """BLAKE2b-128 of the stored audio of a clip, as the library has it.

    Raises:
        AudioError: the dataset has no such clip any more.
        DatasetError: the dataset is missing or damaged.
    """
    return hashlib.blake2b(_clip_bytes(path, member), digest_size=16).digest()


def read_clip(index: ClipIndex, clip: int, member: str) -> bytes:
    """The FLAC file of a clip that was found by its number.

    Raises:
        AudioError: it is not the clip of this key any more, because the dataset was prepared again.
        DatasetError: the dataset is damaged.
    """
    if clip >= len(index) or clip_member(index.key(clip)) != member:
        raise AudioError(
            CHANGED_WHILE_READ, "its dataset was replaced while it was read; the next update reads it again"
        )
    return index.read_audio(clip)


def clip_member(key: str) -> str:
    """The key of a clip as a library stores it: valid Unicode, which the name of a file in a tar need not be."""
    return key.encode("utf-8", "backslashreplace").decode()


def _between(blocks: Iterable[tuple[int, np.ndarray]], begin: int, end: int) -> Iterator[np.ndarray]:
    for position, block in blocks:
        part = block[max(0, begin - position) : max(0, end - position)]
        if len(part):
            yield part
        if position + len(block) >= end:
            return  # what comes after it may be damaged


def _clip_bytes(path: str, member: str) -> bytes:
    try:
        stamps = tuple(os.stat(Path(path) / name).st_mtime_ns for name in (INFO_NAME, INDEX_NAME))
        index, clips = _opened(path, stamps)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DatasetError(f"{path}: the dataset cannot be read: {reason}") from error
    if member not in clips:
        raise AudioError("missing_file", f"the dataset {path} has no clip {member} any more; index it again")
    return index.read_audio(clips[member])


@lru_cache(maxsize=8)
def _opened(path: str, stamps: tuple[int, ...]) -> tuple[ClipIndex, dict[str, int]]:
    """A dataset and the number of each of its keys. `stamps` opens it again when it was prepared again."""
    index = ClipIndex.open(path)
    return index, {clip_member(index.key(clip)): clip for clip in range(len(index))}
