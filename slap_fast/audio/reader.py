"""Audio reader: decodes files and streams in mono blocks, and checks lengths against the headers."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from slap_fast.audio.audio_source import MAX_SHORTFALL, Loudness, check_length
from slap_fast.audio.containers import ByteView, StreamLayout, StreamPart, find_layout, mpeg_layout
from slap_fast.audio.errors import AudioError
from slap_fast.audio.formats import CONVERT_HINT, OTHER_MEDIA_EXTENSIONS
from slap_fast.audio.media_file import MediaFile, NotMediaError, ffmpeg_version, unavailable

_BLOCK_VALUES = 1 << 18  # samples times channels decoded at once
_UNKNOWN_FRAMES = 1 << 60  # libsndfile reports 2^63 - 1 for streams of unknown length
_MPEG_SHARE = 0.9  # share of a file without any header that MPEG frames must fill
_FRAMES_PAST_END = 4096

EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
"""Formats of libsndfile in which a position is exact, since each sample or frame has its place."""

AudioFileLike = str | os.PathLike[str] | bytes | BinaryIO | io.RawIOBase
"""A path, a file's bytes, or a seekable binary stream."""


def open_audio(file: AudioFileLike, *, name: str = "") -> AudioFile | MediaFile:
    """Open a path, a file's bytes or a seekable stream, to be read once.

    libsndfile reads what it can; other files go to FFmpeg, if PyAV is installed (extra `media`). Content decides, not
    the name.

    Args:
        file: the audio.
        name: name of bytes or of a stream, for the error.

    Raises:
        AudioError: as `load_audio`.
    """
    close = isinstance(file, (str, bytes, os.PathLike))
    if isinstance(file, (str, os.PathLike)):
        _check_file(Path(file))
        name = os.path.basename(file)
        file = open(file, "rb", buffering=0)  # noqa: SIM115 (closed by AudioFile)
    elif isinstance(file, bytes):
        if not file:
            raise AudioError("empty_file", "0 bytes")
        file = io.BytesIO(file)
    try:
        try:
            return AudioFile(file, close=close)
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            if isinstance(error, AudioError):
                raise
            return _open_media(file, close, name, _short_message(error))
    except BaseException:
        if close:
            file.close()
        raise


def _open_media(file: BinaryIO | io.RawIOBase, close: bool, name: str, reason: str) -> MediaFile:
    """Open a file that libsndfile does not read, for `reason`."""
    extension = os.path.splitext(name)[1].lower()
    if missing := unavailable():
        if extension in OTHER_MEDIA_EXTENSIONS:
            detail = f"{name}: libsndfile does not read {extension} files; {missing}, or {CONVERT_HINT}"
            raise AudioError("unsupported_format", detail)
        detail = f"not audio that libsndfile reads ({reason}); if it is audio, {missing}, or {CONVERT_HINT}"
        raise AudioError("unreadable", detail)
    try:
        return MediaFile(file, close=close)
    except NotMediaError as error:
        if extension in OTHER_MEDIA_EXTENSIONS:
            detail = f"{name}: neither libsndfile nor FFmpeg reads this {extension} file ({error}); {CONVERT_HINT}"
            raise AudioError("unsupported_format", detail) from error
        detail = f"not audio that libsndfile reads ({reason}), nor FFmpeg ({error}); if it is audio, {CONVERT_HINT}"
        raise AudioError("unreadable", detail) from error


def reader_versions() -> dict[str, str]:
    """Versions of the libraries whose results depend on their version: decoders and resampler."""
    versions = {"libsndfile": soundfile.__libsndfile_version__, "libsoxr": soxr.__libsoxr_version__}
    return versions | {"ffmpeg": ffmpeg_version()}


class AudioFile:
    """An open audio file: one stream, or several concatenated ones, which are decoded in order.

    Attributes:
        samplerate: Hz, of the first stream.
        channels: of the first stream.
        notes: `(reason, detail)` of each irregularity; complete after all blocks were read.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, *, close: bool = False) -> None:
        """Read the headers.

        Args:
            file: seekable.
            close: close `file` with this object.

        Raises:
            AudioError: the file is truncated.
            soundfile.SoundFileError: libsndfile cannot read the file.
        """
        self._file = file
        self._close_file = close
        size = file.seek(0, io.SEEK_END)
        layout = _checked(find_layout(file, size))
        self._parts = layout.parts or (StreamPart(0, size),)
        self._number = 0
        self._begin = 0  # frame of the first part
        try:
            self._sound = self._open(0)
        except soundfile.SoundFileError:
            # libsndfile does not recognize a recording that begins in the middle of an MP3 frame.
            frames = mpeg_layout(file, size)
            if frames is None or sum(part.end - part.start for part in frames.parts) < _MPEG_SHARE * size:
                raise
        else:
            frames = mpeg_layout(file, size) if self._sound.format == "MP3" else None
        if frames is not None:
            layout = _checked(frames)
            self._parts = layout.parts
            self._sound = self._open(0)
        if self._sound.format == "VOC" and "truncated" in self._sound.extra_info:
            raise AudioError("truncated", "the last block ends beyond the file")
        self.samplerate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        self.notes = list(layout.notes)
        if len(self._parts) > 1:
            self.notes.append(("joined", f"{len(self._parts)} concatenated streams; all were read"))
        if layout.missing:
            self.notes.append(("cut_short", layout.detail))

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a stream that was passed in open stays open."""
        self._sound.close()
        if self._close_file:
            self._file.close()

    @property
    def declared_seconds(self) -> float | None:
        """Length of the current stream in its header; None if the header does not have it or is unreliable."""
        counted = self._parts[self._number].samples
        frames = self._sound.frames if counted is None else counted
        # The last page of an Ogg stream has the end position, but a recorded stream may not start at 0.
        if self._sound.format == "OGG" or not 0 <= frames < _UNKNOWN_FRAMES:
            return None
        return frames / self._sound.samplerate

    def skip(self, seconds: int) -> int:
        """Let `blocks` begin after so many seconds, if positions in this file are exact; returns where it begins."""
        frame, part = seconds * self.samplerate, self._parts[0]
        is_exact = len(self._parts) == 1 and self._sound.format in EXACT_FORMATS and not part.skip
        if not is_exact or not 0 < frame < (part.samples or self._sound.frames) < _UNKNOWN_FRAMES:
            return 0
        try:
            if self._sound.format == "FLAC" and part.patches:  # these hide the length, which a seek needs
                self._sound.close()
                self._sound = self._open(0, replace(part, patches=()))
            self._sound.seek(frame)
        except soundfile.SoundFileError:  # a damaged file, which may still be decoded from its begin
            self._sound.close()
            self._sound = self._open(0)
            return 0
        self._begin = frame
        return seconds

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the sample rate in Hz and a non-empty `[n]` float32 block, the mean of the channels."""
        for number in range(len(self._parts)):
            if number:
                self._sound.close()
                self._number = number
                try:
                    self._sound = self._open(number)
                except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
                    detail = f"stream {number + 1} of {len(self._parts)} is not readable ({_short_message(error)})"
                    raise AudioError("unreadable", detail) from error
            begin = 0 if number else self._begin
            for block in _decode(self._sound, self._parts[number], begin, self.declared_seconds, self.notes):
                yield self._sound.samplerate, block
            if self._view.error:
                raise AudioError("unreadable", f"the file cannot be read to its end ({self._view.error})")

    def _open(self, number: int, part: StreamPart | None = None) -> soundfile.SoundFile:
        self._view = ByteView(self._file, part or self._parts[number])
        return _SequentialFile(self._view)


def _checked(layout: StreamLayout) -> StreamLayout:
    if layout.missing > MAX_SHORTFALL:
        raise AudioError("truncated", layout.detail)
    return layout


def _decode(
    sound: soundfile.SoundFile, part: StreamPart, begin: int, declared: float | None, notes: list[tuple[str, str]]
) -> Iterator[np.ndarray]:
    max_frames = max(1024, _BLOCK_VALUES // sound.channels)
    read, loudness = begin - part.skip, Loudness()
    # libFLAC takes bytes after the last frame, such as a tag, for damage, and drops the block it was filling. So one
    # block ends at the declared end, and blocks after that are short.
    count = part.samples or sound.frames
    end = count if sound.format == "FLAC" and 0 < count < _UNKNOWN_FRAMES else None
    is_float = sound.subtype in ("FLOAT", "DOUBLE")
    while True:
        past_end = end is not None and read >= end
        frames = max_frames if end is None else _FRAMES_PAST_END if past_end else min(max_frames, end - read)
        try:
            block = sound.read(frames, dtype="float32", always_2d=True)  # [n, channels]
        except soundfile.SoundFileError as error:
            if past_end:
                notes.append(("trailing_bytes", "bytes after the last FLAC frame were not read"))
                break
            where = f"after {read / sound.samplerate:.1f} s"
            raise AudioError("unreadable", f"damaged or cut off {where} ({_short_message(error)})") from error
        if not len(block):
            break
        skipped = max(0, -read)
        read += len(block)
        block = block[skipped:]
        mono = _mixed(block)
        with np.errstate(over="ignore", invalid="ignore"):
            total = mono.sum()  # a NaN or infinity shows in it; isfinite alone would write a mask
        if not np.isfinite(total) and not np.isfinite(mono).all():
            raise AudioError("not_finite", f"NaN or infinite samples before {read / sound.samplerate:.1f} s")
        if is_float:
            loudness.add(mono)
        if len(mono):
            yield mono
    loudness.check()
    check_length(read / sound.samplerate, declared, notes)


def _mixed(block: np.ndarray) -> np.ndarray:
    """`[n]` mean of the channels of `[n, channels]`: channel by channel, which takes a tenth of `mean(axis=1)`."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        total = block[:, 0] + block[:, 1]
        for channel in range(2, block.shape[1]):
            total += block[:, channel]
        total /= np.float32(block.shape[1])
    return total


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioError("missing_file", str(path)) from error
    except (OSError, ValueError) as error:
        raise AudioError("unreadable", f"{path} ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("unreadable", f"{path} is not a regular file")
    if status.st_size == 0:
        raise AudioError("empty_file", "0 bytes")
    if not os.access(path, os.R_OK):
        raise AudioError("unreadable", f"{path}: permission denied")


def _short_message(error: BaseException) -> str:
    return str(error).rpartition(": ")[2].rstrip(".") or type(error).__name__


class _SequentialFile(soundfile.SoundFile):
    """Read from start to end: soundfile seeks after every block, which fails in FLAC streams of unknown length."""

    def seekable(self) -> bool:
        return False
