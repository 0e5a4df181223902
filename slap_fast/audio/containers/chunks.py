"""Chunk formats (WAV, RF64, AIFF, 8SVX, CAF, W64) and AU: compares the declared audio size with the file.

libsndfile silently reads a truncated file, and reads nothing if the writer of a stream never filled in the sizes.

Source: RIFF (Microsoft, 1991), EBU Tech 3306 (RF64), AIFF-C (Apple, 1991), the Core Audio Format and Wave64
specifications; the placeholder sizes are those that ffmpeg, SoX and arecord write to a pipe.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

from slap_fast.audio.containers.byte_view import StreamLayout, StreamPart, read_at

_MAX_CHUNKS = 10_000
_UNKNOWN_32 = b"\xff\xff\xff\xff"
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


@dataclass(frozen=True)
class _Format:
    order: Literal["little", "big"]
    first_chunk: int  # byte offset
    id_bytes: int
    size_bytes: int
    audio_ids: tuple[bytes, ...]
    alignment: int = 1
    size_includes_header: bool = False


@dataclass(frozen=True)
class _Chunk:
    id: bytes
    size: int
    size_at: int
    start: int


def chunk_layout(file: BinaryIO | io.RawIOBase, size: int) -> StreamLayout | None:
    """Compare the audio chunk with the file of `size` bytes; None if it is another format, or regular."""
    magic = read_at(file, 0, 40)
    if magic[:4] == b".snd":
        return _au(magic, size)
    if (format := _detect_format(magic)) is None or (found := _audio_chunk(file, size, format)) is None:
        return None
    chunk, sizes = found
    available = size - chunk.start
    declared = sizes.size if sizes is not None else chunk.size
    if format.size_bytes == 8 and not 0 < declared < 1 << 62:
        # A CAF size of -1 and a Wave64 size of 2^63 - 1 mean the rest of the file.
        filled = available + (format.id_bytes + format.size_bytes if format.size_includes_header else 0)
        return StreamLayout((StreamPart(0, size, patches=((chunk.size_at, filled.to_bytes(8, format.order)),)),))
    if sizes is not None and declared == 0 < available:
        # RF64 written to a pipe: patch the sizes of the file and of the audio.
        totals = (size - 8).to_bytes(8, "little") + available.to_bytes(8, "little")
        return StreamLayout((StreamPart(0, size, patches=((sizes.start, totals),)),))
    if magic[:3] == b"RIF":
        whole = int.from_bytes(magic[4:8], format.order)
        # The writer filled in neither the audio size nor a file size that includes the audio.
        unfilled = declared == 0 < available and (_is_unknown(whole) or whole + 8 <= chunk.start)
        # More than 4 GiB with a 32-bit size.
        if unfilled or (available - declared) >> 32 > 0:
            return StreamLayout((StreamPart(0, size, patches=((chunk.size_at, _UNKNOWN_32),)),))
    if format.size_bytes == 4 and sizes is None and _is_unknown(declared):
        return None
    if declared > available:
        detail = f"the header declares {declared} bytes of audio, the file holds {available}"
        return StreamLayout(missing=1 - max(0, available) / declared, detail=detail)
    return _check_trailing(file, size, format, chunk, declared)


def _check_trailing(
    file: BinaryIO | io.RawIOBase, size: int, format: _Format, chunk: _Chunk, declared: int
) -> StreamLayout | None:
    end = chunk.start + declared
    after = end + -declared % format.alignment
    stray = read_at(file, after, format.id_bytes) if after < size else b""
    notes: tuple[tuple[str, str], ...] = ()
    if stray.strip(b"\0") and not all(32 <= byte < 127 for byte in stray[:4]):
        detail = f"{size - after} bytes after the {declared} bytes of audio are not a chunk and were not read"
        notes = (("trailing_bytes", detail),)
    if chunk.id in (_W64_DATA, b"BODY") and end < size:
        # libsndfile reads Wave64 and 8SVX to the end of the file, so later chunks would be decoded as noise.
        return StreamLayout((StreamPart(0, end),), notes=notes)
    return StreamLayout(notes=notes) if notes else None


def _au(magic: bytes, size: int) -> StreamLayout | None:
    start, declared = int.from_bytes(magic[4:8], "big"), int.from_bytes(magic[8:12], "big")
    available = size - start
    if _is_unknown(declared) or declared <= available:
        return None
    detail = f"the header declares {declared} bytes of audio, the file holds {max(0, available)}"
    return StreamLayout(missing=1 - max(0, available) / declared, detail=detail)


def _detect_format(magic: bytes) -> _Format | None:
    if magic[8:12] == b"WAVE" and magic[:4] in (b"RIFF", b"RF64", b"BW64"):
        return _Format("little", 12, 4, 4, (b"data",), 2)
    if magic[:4] == b"RIFX" and magic[8:12] == b"WAVE":
        return _Format("big", 12, 4, 4, (b"data",), 2)
    if magic[:4] == b"FORM" and magic[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        return _Format("big", 12, 4, 4, (b"SSND", b"BODY"), 2)
    if magic[:4] == b"caff":
        return _Format("big", 8, 4, 8, (b"data",))
    if magic[:16] == _W64_RIFF:
        return _Format("little", 40, 16, 8, (_W64_DATA,), 8, True)
    return None


def _audio_chunk(file: BinaryIO | io.RawIOBase, size: int, format: _Format) -> tuple[_Chunk, _Chunk | None] | None:
    """The audio chunk, and for RF64 the `ds64` chunk, with the audio size as its `size`."""
    place, sizes = format.first_chunk, None
    header_bytes = format.id_bytes + format.size_bytes
    for _ in range(_MAX_CHUNKS):
        header = read_at(file, place, header_bytes)
        if len(header) < header_bytes:
            return None
        name, length = header[: format.id_bytes], int.from_bytes(header[format.id_bytes :], format.order)
        length -= header_bytes if format.size_includes_header else 0
        start = place + header_bytes
        if name in format.audio_ids:
            chunk = _Chunk(name, length, place + format.id_bytes, start)
            return chunk, sizes if length == 0xFFFFFFFF else None
        if name == b"ds64" and length >= 24:
            sizes = _Chunk(name, int.from_bytes(read_at(file, start + 8, 8), "little"), 0, start)
        if length < 0 or start + length > size:
            return None
        place = start + length + -length % format.alignment
    return None


def _is_unknown(size: int) -> bool:
    return size == 0 or 0x7FFFF000 <= size <= 0x80000000 or size >= 0xFFFFFF00
