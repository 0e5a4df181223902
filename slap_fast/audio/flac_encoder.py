"""FLAC encoder for the shards: 16-bit mono with a seek table, in memory or in a temporary file if large."""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from slap_fast.audio.errors import AudioError
from slap_fast.audio.flac_seek_table import TABLE_OFFSET, insert_bytes, seek_table

_BLOCK_SAMPLES = 1 << 18  # encoded at once
_IN_MEMORY_BYTES = 16 << 20  # larger FLAC streams go to a temporary file
_MAX_FLAC_BYTES = (1 << 32) - 1  # the index stores sizes in 32 bits


@dataclass(frozen=True)
class Flac:
    """A clip as the shards store it: 16-bit mono FLAC.

    Attributes:
        audio: content of the FLAC file, or the path of a temporary file if it is large.
        size: bytes of the FLAC file.
        samples: length in samples.
        silent: all samples are zero.
        clipped: number of samples beyond full scale.
        peak: largest magnitude before clipping; 0 if no sample was clipped.
        seekable: the file has a seek table. False only if this libsndfile writes FLAC in an unexpected way.
    """

    audio: bytes | Path
    size: int
    samples: int
    silent: bool
    clipped: int = 0
    peak: float = 0.0
    seekable: bool = True


def encode_flac(
    blocks: Iterable[np.ndarray],
    spill: Path,
    *,
    sample_rate: int = 16_000,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
) -> Flac:
    """Encode `[n]` float blocks as 16-bit mono FLAC. Samples beyond [-1, 1) are clipped; no dither.

    Frames have 4096 samples, libFLAC's default, which soundfile cannot change without lower compression. The seek table
    has a point at every frame (`slap_fast.audio.flac_seek_table`).

    Args:
        blocks: consecutive blocks of the waveform at `sample_rate` Hz, in [-1, 1].
        spill: path of the temporary file for a large result.
        sample_rate: Hz.
        min_seconds: shorter clips are rejected.
        max_seconds: longer clips are rejected, without reading further blocks.

    Raises:
        AudioError: `not_finite`, `no_samples`, `too_short`, `too_long`.
        OSError: `spill` cannot be written.
    """
    limit = float("inf") if max_seconds is None else max_seconds * sample_rate
    samples, silent, clipped, peak = 0, True, 0, 0.0
    with _Spool(spill) as spool:
        with soundfile.SoundFile(spool, "w", sample_rate, 1, "PCM_16", format="FLAC") as flac:
            for block in blocks:
                for start in range(0, len(block), _BLOCK_SAMPLES):
                    piece = block[start : start + _BLOCK_SAMPLES]
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
        seekable = spool.add_seek_table(samples)
        if spool.size > _MAX_FLAC_BYTES:
            raise AudioError("too_long", "more than 4 GiB as FLAC")
        audio = spool.take()
    return Flac(audio, spool.size, samples, silent, clipped, peak, seekable)


def _to_pcm16(block: np.ndarray) -> tuple[np.ndarray, int]:
    """`[n]` int16, and the number of samples clipped by more than one quantization step."""
    # Decoders divide by 32768, so 16-bit sources at the target rate are kept bit for bit.
    scaled = np.rint(np.asarray(block, np.float32) * np.float32(32768))
    if not np.isfinite(scaled).all():
        raise AudioError("not_finite", "NaN or infinite samples")
    pcm = np.clip(scaled, -32768, 32767)
    return pcm.astype(np.int16), int(np.count_nonzero(np.abs(scaled - pcm) > 1))


class _Spool:
    """A binary file in memory that moves to disk when it is large; keeps the write errors that libsndfile hides."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = io.BytesIO()
        self._spilled = False
        self._taken = False
        self._error: OSError | None = None
        self._appended = array("Q")  # offsets of the writes at the end
        self.size = 0

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._spilled and not self._taken:
            self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> int:
        # libsndfile calls this from C, which cannot pass on an exception.
        try:
            if (position := self._file.tell()) == self.size:
                self._appended.append(position)
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

    def guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a soundfile function; raise the OSError that caused its failure, if any."""
        try:
            function(*arguments)
        except (soundfile.SoundFileError, AssertionError):
            # soundfile asserts that all samples were written.
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def add_seek_table(self, samples: int) -> bool:
        """Inserts the seek table of the finished stream; False if it cannot be made."""
        table = seek_table(self._file, self._appended, samples)
        if table is None:
            return False
        insert_bytes(self._file, TABLE_OFFSET, table)
        self.size += len(table)
        return True

    def take(self) -> bytes | Path:
        """The content: bytes, or the path of a file that the caller must delete."""
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
