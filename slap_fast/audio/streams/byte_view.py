"""Parts of a file as files of their own."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 16
_FURTHEST = 1 << 62


@dataclass(frozen=True)
class Part:
    """A stretch of a file that a decoder reads as one stream.

    Attributes:
        start, end: bytes of the file.
        head: bytes put before them.
        patches: `(offset in the file, bytes that stand there instead)`.
        skip: samples to pass over, which `head` makes.
        samples: how many follow, where that is known better than the decoder does.
    """

    start: int
    end: int
    head: bytes = b""
    patches: tuple[tuple[int, bytes], ...] = ()
    skip: int = 0
    samples: int | None = None


@dataclass(frozen=True)
class Stretches:
    """What was found of a file's audio.

    Attributes:
        parts: to be decoded one after the other; empty where the file can be read as it is.
        missing: the fraction of the promised audio that the file does not hold.
        detail: in words what is missing.
        notes: `(reason, detail)` of what a report should say of the file if it is used.
    """

    parts: tuple[Part, ...] = ()
    missing: float = 0.0
    detail: str = ""
    notes: tuple[tuple[str, str], ...] = ()


class ByteView(io.RawIOBase):
    """A part of a seekable binary file, as a file of its own, read in large blocks. Closing it leaves the file open.

    For libsndfile, which seeks from C, through which no exception travels, to before the start and beyond 2^63 if a
    damaged header says so.

    Attributes:
        error: why the file could not be read to the end of the part; a decoder takes that for the end.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, part: Part) -> None:
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
        """What stands at `position`, a block of it; nothing if the file has become shorter."""
        if position < len(self._part.head):
            return self._part.head[position:]
        start = self._part.start + position - len(self._part.head)
        data = bytearray(read_at(self._file, start, min(_BLOCK_BYTES, self._size - position)))
        for place, patch in self._part.patches:
            first, after = max(place, start), min(place + len(patch), start + len(data))
            if first < after:
                data[first - start : after - start] = patch[first - place : after - place]
        return bytes(data)


def file_size(file: BinaryIO | io.RawIOBase) -> int:
    """Bytes of a seekable file."""
    return file.seek(0, io.SEEK_END)


def read_at(file: BinaryIO | io.RawIOBase, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset`; fewer at the end of the file."""
    file.seek(offset)
    return file.read(size) or b""
