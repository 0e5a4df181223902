"""Moments cut out of their recordings into WAV files.

WAV, FLAC and other files that can be entered exactly keep their rate, channels and sample format. All others, and clips
of datasets, become 16-bit mono at their own rate.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import soundfile

from slap_fast.audio.reader import EXACT_FORMATS
from slap_fast.errors import SlapFastError, one_line
from slap_fast.library.database import Database, stored_mtime
from slap_fast.library.errors import LibraryError
from slap_fast.library.moments import Moment
from slap_fast.library.recording_audio import clip_digest, moment_blocks, open_named
from slap_fast.runtime.durable_files import replace_file_with

_BLOCK_FRAMES = 1 << 16
_LARGEST_WAV = 4_000_000_000  # bytes; a longer moment has the header of RF64
_LONGEST_STEM = 100  # bytes of a name; file systems take 255


@dataclass(frozen=True)
class ExportedMoment:
    """A moment and its file.

    Attributes:
        path: of the file; None if the moment could not be cut out.
        reason: why not; else empty.
    """

    moment: Moment
    path: Path | None
    reason: str = ""


def export_moments(moments: Iterable[Moment], folder: Path, database: Database) -> list[ExportedMoment]:
    """Write `001 NAME h-mm-ss.s.wav` for each moment: its rank, its recording and its start; no file is overwritten.

    A recording that is gone, has changed since it was indexed, or cannot be read is reported in the result, not raised.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exported = []
    for rank, moment in enumerate(moments, 1):
        path = _reserve(folder, f"{rank:03d} {_stem(moment)} {_clock(moment.start)}")
        try:
            _check_unchanged(moment, database)
            replace_file_with(path, partial(_cut, moment))
        except SlapFastError as error:
            path.unlink()
            exported.append(ExportedMoment(moment, None, one_line(error, 400)))
        except BaseException:
            path.unlink()
            raise
        else:
            exported.append(ExportedMoment(moment, path))
    return exported


def _check_unchanged(moment: Moment, database: Database) -> None:
    """
    Raises:
        LibraryError: the recording is not the one that was searched, so the moment may be another sound.
        AudioError, DatasetError: the dataset has no such clip any more, is damaged or gone.
    """
    with database.snapshot():
        place = database.places([moment.window]).get(moment.window)
        recording = None if place is None else database.recordings_of([place.recording])[place.recording]
    if recording is None or (recording.path, recording.member) != (moment.path, moment.member):
        raise LibraryError("it has changed since this result was found; search again")
    if moment.member:  # of a dataset that was prepared again, only the content tells
        changed = clip_digest(moment.path, moment.member) != recording.digest
    else:
        try:
            status = os.stat(moment.path)
        except OSError:
            return  # reported by the reader
        changed = (status.st_size, stored_mtime(status)) != (recording.size, recording.mtime_ns)
    if changed:
        raise LibraryError("it has changed since it was indexed; run `slap-fast index LIBRARY`, and search again")


def _cut(moment: Moment, path: Path) -> None:
    if moment.member or not _copy_samples(moment, path):
        _decode(moment, path)


def _copy_samples(moment: Moment, path: Path) -> bool:
    """Copy the samples as they are stored; False if the file has to be decoded from its begin."""
    try:
        with open(moment.path, "rb") as file, soundfile.SoundFile(file) as sound:
            # Of a damaged or joined file, libsndfile may see another length than what was embedded.
            is_whole = abs(sound.frames / sound.samplerate - moment.seconds) < 0.05
            if sound.format not in EXACT_FORMATS or not is_whole or not sound.seekable():
                return False
            begin, end = round(moment.start * sound.samplerate), round(moment.end * sound.samplerate)
            sound.seek(begin)
            subtype = sound.subtype if soundfile.check_format("WAV", sound.subtype) else "PCM_16"
            kind = {"FLOAT": "float32", "DOUBLE": "float64"}.get(subtype, "int32")
            form = "RF64" if (end - begin) * sound.channels * 8 > _LARGEST_WAV else "WAV"
            stored = (sound.samplerate, sound.channels, subtype)
            with soundfile.SoundFile(os.fsencode(path), "w", *stored, format=form) as out:
                for block in sound.blocks(_BLOCK_FRAMES, frames=end - begin, dtype=kind, always_2d=True):
                    out.write(block)
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        return False  # what is wrong with the file, if anything, is found by the reader of all formats
    return True


def _decode(moment: Moment, path: Path) -> None:
    with open_named(moment.path, moment.member) as sound:
        rate = sound.samplerate
    form = "RF64" if (moment.end - moment.start) * rate * 2 > _LARGEST_WAV else "WAV"
    try:
        with soundfile.SoundFile(os.fsencode(path), "w", rate, 1, "PCM_16", format=form) as out:
            for block in moment_blocks(moment.path, moment.member, moment.start, moment.end, rate):
                out.write(block)
    except soundfile.SoundFileError as error:
        raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error


def _reserve(folder: Path, stem: str) -> Path:
    """A new empty file that no other process has: `stem.wav`, `stem (2).wav`, ..."""
    for number in count(1):
        path = folder / (f"{stem}.wav" if number == 1 else f"{stem} ({number}).wav")
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def _stem(moment: Moment) -> str:
    """The name of the recording with letters, digits and harmless signs alone, and no longer than a name may be."""
    name = moment.member or os.path.splitext(os.path.basename(moment.path))[0]
    safe = "".join(letter if letter.isalnum() or letter in " ._-()+," else "_" for letter in name).strip(" .")
    return safe.encode()[:_LONGEST_STEM].decode(errors="ignore").strip(" .") or "_"


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 36000}-{tenths // 600 % 60:02d}-{tenths % 600 / 10:04.1f}"
