"""Audio of any kind in, 16 kHz mono out: decoded by soundfile, mixed down by the mean, resampled once by soxr (HQ).

Everything streams in blocks, so that the memory of a three-hour clip is that of a short one.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
import soxr

from slap_fast.audio.streams import (
    ByteView,
    Part,
    Stretches,
    chunk_stretches,
    file_size,
    flac_stretches,
    mpeg_stretches,
    ogg_stretches,
)
from slap_fast.errors import SlapFastError

logger = logging.getLogger(__name__)

_BLOCK_VALUES = 1 << 18  # samples times channels decoded at once
_IN_MEMORY_BYTES = 16 << 20  # longer FLAC streams go through a temporary file
_MAX_FLAC_BYTES = (1 << 32) - 1  # the index stores sizes in 32 bits
_UNKNOWN_FRAMES = 1 << 60  # libsndfile claims 2^63 - 1 for streams that do not say
_LOWEST_RATE = 500  # Hz; resampled from less, a damaged header would make gigabytes of a small file
_SHORTFALL = 0.05  # a file that lacks more than this of what its header promises is cut off
_MPEG_SHARE = 0.9  # of a file without any header that frames must fill for it to be MPEG audio
_BEYOND_FRAMES = 4096
_NOTED_SECONDS = 0.05  # a shortfall of less is the codec's

AUDIO_EXTENSIONS = frozenset(
    {".wav", ".wave", ".flac", ".mp3", ".mp2", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd"}
    | {".caf", ".w64", ".rf64", ".voc"}
)

OTHER_MEDIA_EXTENSIONS = frozenset(
    {".m4a", ".mp4", ".m4b", ".aac", ".webm", ".weba", ".mka", ".mkv", ".wma", ".wmv", ".mov", ".avi", ".3gp", ".ac3"}
    | {".amr", ".ape", ".wv", ".tta", ".mpc", ".spx", ".dsf", ".ra", ".flv", ".mpg", ".mpeg", ".ts", ".adts", ".eac3"}
)
"""What holds audio that libsndfile does not read."""

CONVERT = "convert it, for example with `ffmpeg -i FILE FILE.flac`"


class AudioError(SlapFastError, ValueError):
    """A clip that cannot be used.

    Attributes:
        reason: one of `missing_file`, `empty_file`, `unsupported_format`, `unreadable`, `truncated`, `no_samples`,
            `not_finite`, `out_of_range`, `too_short`, `too_long`: what a report counts by.
        detail: what was found, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Flac:
    """A clip as the shards store it: 16-bit mono FLAC.

    Attributes:
        audio: the FLAC file's bytes, or the path of a temporary file that holds them where they are many.
        size: their number.
        samples: length in samples.
        silent: every sample is zero.
        clipped: samples that were beyond full scale.
        peak: the largest magnitude before clipping.
    """

    audio: bytes | Path
    size: int
    samples: int
    silent: bool
    clipped: int = 0
    peak: float = 0.0


AudioInput = str | os.PathLike[str] | bytes | BinaryIO | io.RawIOBase
"""A path, a file's bytes, or a seekable binary stream."""


def load_audio(file: AudioInput, sample_rate: int = 16_000) -> np.ndarray:
    """A clip as `[S]` float32 mono at `sample_rate` Hz.

    Channels are mixed by their mean; resampling is soxr's HQ. The values are the decoder's (within [-1, 1] for integer
    formats) and are not clipped. What is odd about a file that can be used is logged as a warning.

    Raises:
        AudioError: the file is missing, empty, not audio, cut off, without samples, holds NaN or infinity, or floats at
            the scale of integers.
    """
    with open_audio(file) as sound:
        blocks = list(mono_blocks(sound, sample_rate))
        warn_of(sound, _describe(file))
    if not blocks:
        raise AudioError("no_samples", f"{_describe(file)} holds no samples")
    return np.concatenate(blocks)


def warn_of(sound: Sound, name: str) -> None:
    """Logs what was odd about a file, once its blocks were read."""
    for reason, detail in sound.notes:
        logger.warning("%s: %s: %s", name, reason, detail)


def open_audio(file: AudioInput) -> AudioFile:
    """Opens a path, a file's bytes, or a seekable stream, to be read once; see `load_audio` for the errors."""
    name = extension = ""
    ours = isinstance(file, (str, bytes, os.PathLike))
    if isinstance(file, (str, os.PathLike)):
        _check_file(Path(file))
        name = os.path.basename(file)
        extension = os.path.splitext(name)[1].lower()
        file = open(file, "rb", buffering=0)  # noqa: SIM115 (closed by AudioFile)
    elif isinstance(file, bytes):
        if not file:
            raise AudioError("empty_file", "0 bytes")
        file = io.BytesIO(file)
    try:
        return AudioFile(file, close=ours)
    except (AudioError, soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        if ours:
            file.close()
        if isinstance(error, AudioError):
            raise
        if extension in OTHER_MEDIA_EXTENSIONS:
            detail = f"{name}: libsndfile does not read {extension} files; {CONVERT}"
            raise AudioError("unsupported_format", detail) from error
        detail = f"not audio that libsndfile reads ({_last_words(error)}); if it is audio, {CONVERT}"
        raise AudioError("unreadable", detail) from error


class AudioFile:
    """An open audio file: one stream, or several that were joined, which are decoded one after the other.

    Attributes:
        samplerate: Hz, of the first stream.
        channels: of the first stream.
        notes: `(reason, detail)` of what was odd, complete once all blocks were read.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, *, close: bool = False) -> None:
        """Reads the headers.

        Args:
            file: seekable.
            close: close it with this.

        Raises:
            AudioError: the file is cut off.
            soundfile.SoundFileError: it is not audio that libsndfile reads.
        """
        self._file = file
        self._close_file = close
        size = file_size(file)
        found = chunk_stretches(file, size) or ogg_stretches(file, size) or flac_stretches(file, size) or Stretches()
        if found.missing > _SHORTFALL:
            raise AudioError("truncated", found.detail)
        self._parts = found.parts or (Part(0, size),)
        self._number = 0
        try:
            self._sound = self._open(0)
        except soundfile.SoundFileError:
            # A recording that begins within an MP3 frame is no format that libsndfile knows.
            frames = mpeg_stretches(file, size)
            if frames is None or sum(part.end - part.start for part in frames.parts) < _MPEG_SHARE * size:
                raise
        else:
            frames = mpeg_stretches(file, size) if self._sound.format == "MP3" else None
        if frames is not None:
            found = frames
            if found.missing > _SHORTFALL:
                raise AudioError("truncated", found.detail)
            self._parts = found.parts
            self._sound = self._open(0)
        if self._sound.format == "VOC" and "truncated" in self._sound.extra_info:
            raise AudioError("truncated", "its last block ends beyond the file")
        self.samplerate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        self.notes = list(found.notes)
        if len(self._parts) > 1:
            self.notes.append(("joined", f"{len(self._parts)} streams, one after the other; all were read"))
        if found.missing:
            self.notes.append(("cut_short", found.detail))

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; a stream that was given open stays so."""
        self._sound.close()
        if self._close_file:
            self._file.close()

    @property
    def declared_seconds(self) -> float | None:
        """What the header of the stream at hand promises, or None where it does not say, or is not to be relied on."""
        counted = self._parts[self._number].samples
        frames = self._sound.frames if counted is None else counted
        # The last page of an Ogg stream tells its end, but a recording does not begin at 0.
        return (
            frames / self._sound.samplerate if 0 <= frames < _UNKNOWN_FRAMES and self._sound.format != "OGG" else None
        )

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the sample rate in Hz and a non-empty `[n]` float32 block, channels mixed by their mean."""
        for number in range(len(self._parts)):
            if number:
                self._sound.close()
                self._number = number
                try:
                    self._sound = self._open(number)
                except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
                    detail = f"stream {number + 1} of {len(self._parts)} is not readable ({_last_words(error)})"
                    raise AudioError("unreadable", detail) from error
            for block in _mono(self._sound, self._parts[number], self.declared_seconds, self.notes):
                yield self._sound.samplerate, block
            if self._view.error:
                raise AudioError("unreadable", f"the file cannot be read to its end ({self._view.error})")

    def _open(self, number: int) -> soundfile.SoundFile:
        self._view = ByteView(self._file, self._parts[number])
        return _SequentialFile(self._view)


class Sound(Protocol):
    """An open audio file, or a stretch of one; see `AudioFile`."""

    samplerate: int
    channels: int
    notes: list[tuple[str, str]]

    @property
    def declared_seconds(self) -> float | None: ...

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]: ...


def mono_blocks(sound: Sound, sample_rate: int) -> Iterator[np.ndarray]:
    """Yields non-empty `[n]` float32 blocks of an open file, mixed down and resampled to `sample_rate` Hz."""
    for rate, blocks in itertools.groupby(sound.blocks(), lambda block: block[0]):
        yield from _resampled((block for _, block in blocks), rate, sample_rate)


def _resampled(blocks: Iterable[np.ndarray], source_rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    if source_rate == sample_rate:
        yield from blocks
        return
    if source_rate < _LOWEST_RATE:
        raise AudioError("unreadable", f"the header says {source_rate} Hz, less than {_LOWEST_RATE} Hz")
    try:
        resampler = soxr.ResampleStream(source_rate, sample_rate, 1, dtype="float32", quality="HQ")
    except (ValueError, RuntimeError) as error:
        raise AudioError("unreadable", f"cannot resample from {source_rate} Hz ({error})") from error
    for block in blocks:
        if len(resampled := resampler.resample_chunk(block)):
            yield resampled
    if len(resampled := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield resampled


def encode_flac(
    blocks: Iterable[np.ndarray],
    spill: Path,
    *,
    sample_rate: int = 16_000,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
) -> Flac:
    """Encodes `[n]` float blocks as 16-bit mono FLAC; samples beyond [-1, 1) are clipped, never wrapped; no dither.

    Args:
        blocks: waveform at `sample_rate` Hz in [-1, 1], in pieces.
        spill: path of the file to use where the result does not fit in memory.
        sample_rate: Hz.
        min_seconds: shorter clips are refused.
        max_seconds: longer clips are refused as soon as they are seen to be.

    Raises:
        AudioError: `not_finite`, `no_samples`, `too_short`, `too_long`.
        OSError: `spill` cannot be written.
    """
    limit = float("inf") if max_seconds is None else max_seconds * sample_rate
    samples, silent, clipped, peak = 0, True, 0, 0.0
    with _Spool(spill) as spool:
        with soundfile.SoundFile(spool, "w", sample_rate, 1, "PCM_16", format="FLAC") as flac:
            for block in blocks:
                for start in range(0, len(block), _BLOCK_VALUES):
                    piece = block[start : start + _BLOCK_VALUES]
                    pcm, beyond = _to_pcm16(piece)
                    clipped += beyond
                    if beyond:
                        peak = max(peak, float(np.abs(piece).max()))
                    samples += len(pcm)
                    silent = silent and not pcm.any()
                    if samples > limit:
                        raise AudioError("too_long", f"more than {max_seconds} s")
                    if spool.size > _MAX_FLAC_BYTES:
                        raise AudioError("too_long", "more than 4 GiB as FLAC")
                    spool.guard(flac.write, pcm)
            spool.guard(flac.close)
        if samples == 0:
            raise AudioError("no_samples", "0 samples")
        if samples < min_seconds * sample_rate:
            raise AudioError("too_short", f"{samples / sample_rate:.3f} s, less than {min_seconds} s")
        audio = spool.take()
    return Flac(audio, spool.size, samples, silent, clipped, peak)


def _to_pcm16(block: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples, and how many of them were clipped by more than one step."""
    # Times 32768, as decoders divide: 16-bit sources at the target rate come back bit for bit.
    scaled = np.rint(np.asarray(block, np.float32) * np.float32(32768))
    if not np.isfinite(scaled).all():
        raise AudioError("not_finite", "NaN or infinite samples")
    pcm = np.clip(scaled, -32768, 32767)
    return pcm.astype(np.int16), int(np.count_nonzero(np.abs(scaled - pcm) > 1))


def _mono(
    sound: soundfile.SoundFile, part: Part, declared: float | None, notes: list[tuple[str, str]]
) -> Iterator[np.ndarray]:
    most = max(1024, _BLOCK_VALUES // sound.channels)
    read, energy = -part.skip, 0.0
    # libFLAC takes what follows the last frame, such as a tag, for damage, and gives nothing of the block it was to
    # fill: up to where the end is promised blocks end there, and beyond it they are short.
    counted = part.samples or sound.frames
    promised = counted if sound.format == "FLAC" and 0 < counted < _UNKNOWN_FRAMES else None
    scale_is_free = sound.subtype in ("FLOAT", "DOUBLE")
    while True:
        beyond = promised is not None and read >= promised
        frames = most if promised is None else _BEYOND_FRAMES if beyond else min(most, promised - read)
        try:
            block = sound.read(frames, dtype="float32", always_2d=True)  # [n, channels]
        except soundfile.SoundFileError as error:
            if beyond:
                notes.append(("trailing_bytes", "what follows the last FLAC frame was not read"))
                break
            where = f"after {read / sound.samplerate:.1f} s"
            raise AudioError("unreadable", f"damaged or cut off {where} ({_last_words(error)})") from error
        if not len(block):
            break
        passed = max(0, -read)
        read += len(block)
        block = block[passed:]
        mono = block[:, 0] if sound.channels == 1 else block.mean(axis=1)
        if not np.isfinite(mono).all():
            raise AudioError("not_finite", f"NaN or infinite samples before {read / sound.samplerate:.1f} s")
        if scale_is_free:
            energy += float(np.square(mono, dtype=np.float64).sum())
        if len(mono):
            yield mono
    if energy > read:
        # No waveform within [-1, 1] has a mean square above 1.
        detail = (
            f"float samples with a root mean square of {(energy / read) ** 0.5:.4g}, where full scale is 1: stored at "
            "the scale of integers; divide them (by 32768 for 16 bits)"
        )
        raise AudioError("out_of_range", detail)
    seconds = read / sound.samplerate
    if declared and seconds < declared - _NOTED_SECONDS:
        detail = f"the header promises {declared:.2f} s, {seconds:.2f} s can be decoded"
        if seconds < declared * (1 - _SHORTFALL):
            raise AudioError("truncated", detail)
        if "cut_short" not in dict(notes):
            notes.append(("cut_short", detail))


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


def _last_words(error: BaseException) -> str:
    return str(error).rpartition(": ")[2].rstrip(".") or type(error).__name__


def _describe(file: object) -> str:
    return str(file) if isinstance(file, (str, os.PathLike)) else "the stream"


class AudioBytes(io.BytesIO):
    """A file in memory for libsndfile, which seeks from C, through which no exception travels."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            # To before its start, as a damaged header may ask.
            return super().seek(0)


class _SequentialFile(soundfile.SoundFile):
    """Read from start to end: soundfile's seek after every block fails in FLAC streams that do not say their length."""

    def seekable(self) -> bool:
        return False


class _Spool:
    """A binary file that lives in memory until it is large, and remembers write errors that libsndfile swallows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = io.BytesIO()
        self._spilled = False
        self._taken = False
        self._error: OSError | None = None
        self.size = 0

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._spilled and not self._taken:
            self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        # libsndfile calls this from C, through which no exception travels.
        try:
            written = self._file.write(data)
            self.size = max(self.size, self._file.tell())
            if not self._spilled and self.size > _IN_MEMORY_BYTES:
                self._spill()
            return written
        except OSError as error:
            self._error = error
            return 0

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def guard(self, function, *arguments: object) -> None:  # type: ignore[no-untyped-def]
        """Calls a soundfile function, and raises the OSError behind its failure, if there is one."""
        try:
            function(*arguments)
        except (soundfile.SoundFileError, AssertionError):
            # soundfile asserts that all samples were written.
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def take(self) -> bytes | Path:
        """The content: bytes, or the path of a file that is now the caller's to delete."""
        if not self._spilled:
            assert isinstance(self._file, io.BytesIO)
            return self._file.getvalue()
        self._file.close()
        self._taken = True
        return self._path

    def _spill(self) -> None:
        assert isinstance(self._file, io.BytesIO)
        position = self._file.tell()
        file = open(self._path, "w+b", buffering=0)  # noqa: SIM115 (closed in __exit__)
        self._spilled = True
        file.write(self._file.getbuffer())
        file.seek(position)
        self._file = file
