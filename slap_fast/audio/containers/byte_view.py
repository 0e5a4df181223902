"""Byte view: parts of a file as separate files for libsndfile."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 16
_FURTHEST = 1 << 62


@dataclass(frozen=True)
class StreamPart:
    """A byte range of a file that a decoder reads as one stream.

    Attributes:
        start, end: byte range in the file.
        head: bytes inserted before the range.
        patches: `(offset in the file, replacement bytes)`.
        skip: samples to drop at the start, which `head` produces.
        samples: length after them, if it is known better than from the header.
    """

    start: int
    end: int
    head: bytes = b""
    patches: tuple[tuple[int, bytes], ...] = ()
    skip: int = 0
    samples: int | None = None


@dataclass(frozen=True)
class StreamLayout:
    """Position of the audio in a file.

    Attributes:
        parts: to be decoded in order; empty if libsndfile can read the file as it is.
        missing: fraction of the declared audio that the file does not hold.
        detail: description of what is missing.
        notes: `(reason, detail)` of each irregularity.
    """

    parts: tuple[StreamPart, ...] = ()
    missing: float = 0.0
    detail: str = ""
    notes: tuple[tuple[str, str], ...] = ()


class ByteView(io.RawIOBase):
    """A part of a seekable binary file as a separate file, read in large blocks. Closing it leaves the file open.

    With a damaged header libsndfile seeks before the start or beyond 2^63; it seeks from C, which cannot pass on an
    exception, so positions are clamped.

    Attributes:
        error: the reason why the file could not be read to the end of the part; a decoder sees the end of the file.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, part: StreamPart) -> None:
        self._file, self._part, self._position = file, part, 0
        self._size = len(part.head) + part.end - part.start
        self._block, self._block_start = b"", 0
        self.error = ""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = min(max(0, start + offset), _FURTHEST)
        return self._position

    def readinto(self, buffer: Any) -> int:
        done = 0
        while done < len(buffer) and self._position < self._size:
            at = self._position - self._block_start
            if not 0 <= at < len(self._block):
                try:
                    self._block = self._read(self._position)
                except OSError as error:
                    self._block, self.error = b"", error.strerror or str(error)
                if not self._block:
                    self.error = self.error or "it has become shorter"
                    break
                self._block_start, at = self._position, 0
            piece = memoryview(self._block)[at : at + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._position += len(piece)
        return done

    def _read(self, position: int) -> bytes:
        """A block at `position`; empty if the file has become shorter."""
        if position < len(self._part.head):
            return self._part.head[position:]
        start = self._part.start + position - len(self._part.head)
        data = bytearray(read_at(self._file, start, min(_BLOCK_BYTES, self._size - position)))
        for place, patch in self._part.patches:
            first, after = max(place, start), min(place + len(patch), start + len(data))
            if first < after:
                data[first - start : after - start] = patch[first - place : after - place]
        return bytes(data)


class ClampedBytesIO(io.BytesIO):
    """A file in memory for libsndfile; clamps seeks before the start, as `ByteView` does."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return super().seek(0)


def read_at(file: BinaryIO | io.RawIOBase, offset: int, size: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer at the end of the file."""
    file.seek(offset)
    return file.read(size) or b""
