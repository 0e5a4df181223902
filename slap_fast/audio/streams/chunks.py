"""Files of chunks (WAV, RF64, AIFF, 8SVX, CAF, W64) and AU: what the audio chunk promises, and what the file holds.

libsndfile takes what there is, without a word, and nothing where a stream's writer could not go back to fill in sizes.

Source: RIFF (Microsoft, 1991), EBU Tech 3306 (RF64), AIFF-C (Apple, 1991), the Core Audio Format and Wave64
specifications; the sizes that stand for an unknown one are those that ffmpeg, SoX and arecord write to a pipe.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

from slap_fast.audio.streams.byte_view import Part, Stretches, read_at

_MAX_CHUNKS = 10_000
_UNKNOWN_32 = b"\xff\xff\xff\xff"
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


@dataclass(frozen=True)
class _Kind:
    order: Literal["little", "big"]
    first: int  # byte of the first chunk
    id_bytes: int
    size_bytes: int
    audio: tuple[bytes, ...]
    alignment: int = 1
    size_includes_header: bool = False


@dataclass(frozen=True)
class _Chunk:
    id: bytes
    size: int
    size_at: int
    start: int


def chunk_stretches(file: BinaryIO | io.RawIOBase, size: int) -> Stretches | None:
    """Compares the audio chunk with the file of `size` bytes; None where it is not such a file or has no such chunk."""
    magic = read_at(file, 0, 40)
    if magic[:4] == b".snd":
        return _au(magic, size)
    if (kind := _kind(magic)) is None or (found := _audio_chunk(file, size, kind)) is None:
        return None
    chunk, sizes = found
    available = size - chunk.start
    declared = sizes.size if sizes is not None else chunk.size
    if kind.size_bytes == 8 and not 0 < declared < 1 << 62:
        # A Core Audio size of -1 and a Wave64 size of 2^63 - 1 stand for the rest of the file.
        filled = available + (kind.id_bytes + kind.size_bytes if kind.size_includes_header else 0)
        return Stretches((Part(0, size, patches=((chunk.size_at, filled.to_bytes(8, kind.order)),)),))
    if sizes is not None and declared == 0 < available:
        # RF64 written to a pipe: bytes of the file, bytes of audio, and frames, which libsndfile computes.
        totals = (size - 8).to_bytes(8, "little") + available.to_bytes(8, "little")
        return Stretches((Part(0, size, patches=((sizes.start, totals),)),))
    if magic[:3] == b"RIF":
        whole = int.from_bytes(magic[4:8], kind.order)
        # No size of audio, and none of the file that has room for it: its writer could not, or did not, fill them in.
        unfilled = declared == 0 < available and (_is_unknown(whole) or whole + 8 <= chunk.start)
        # More than 4 GiB, counted in 32 bits.
        if unfilled or (available - declared) >> 32 > 0:
            return Stretches((Part(0, size, patches=((chunk.size_at, _UNKNOWN_32),)),))
    if kind.size_bytes == 4 and sizes is None and _is_unknown(declared):
        return None
    if declared > available:
        detail = f"the header promises {declared} bytes of audio, the file holds {available}"
        return Stretches(missing=1 - max(0, available) / declared, detail=detail)
    return _what_follows(file, size, kind, chunk, declared)


def _what_follows(
    file: BinaryIO | io.RawIOBase, size: int, kind: _Kind, chunk: _Chunk, declared: int
) -> Stretches | None:
    end = chunk.start + declared
    after = end + -declared % kind.alignment
    stray = read_at(file, after, kind.id_bytes) if after < size else b""
    notes: tuple[tuple[str, str], ...] = ()
    if stray.strip(b"\0") and not all(32 <= byte < 127 for byte in stray[:4]):
        notes = (
            ("trailing_bytes", f"{size - after} bytes after the {declared} bytes of audio are no chunk; not read"),
        )
    if chunk.id in (_W64_DATA, b"BODY") and end < size:
        # libsndfile reads Wave64 and 8SVX to the end of the file: other chunks would become noise.
        return Stretches((Part(0, end),), notes=notes)
    return Stretches(notes=notes) if notes else None


def _au(magic: bytes, size: int) -> Stretches | None:
    start, declared = int.from_bytes(magic[4:8], "big"), int.from_bytes(magic[8:12], "big")
    available = size - start
    if _is_unknown(declared) or declared <= available:
        return None
    detail = f"the header promises {declared} bytes of audio, the file holds {max(0, available)}"
    return Stretches(missing=1 - max(0, available) / declared, detail=detail)


def _kind(magic: bytes) -> _Kind | None:
    if magic[8:12] == b"WAVE" and magic[:4] in (b"RIFF", b"RF64", b"BW64"):
        return _Kind("little", 12, 4, 4, (b"data",), 2)
    if magic[:4] == b"RIFX" and magic[8:12] == b"WAVE":
        return _Kind("big", 12, 4, 4, (b"data",), 2)
    if magic[:4] == b"FORM" and magic[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        return _Kind("big", 12, 4, 4, (b"SSND", b"BODY"), 2)
    if magic[:4] == b"caff":
        return _Kind("big", 8, 4, 8, (b"data",))
    if magic[:16] == _W64_RIFF:
        return _Kind("little", 40, 16, 8, (_W64_DATA,), 8, True)
    return None


def _audio_chunk(file: BinaryIO | io.RawIOBase, size: int, kind: _Kind) -> tuple[_Chunk, _Chunk | None] | None:
    """The chunk that holds the audio, and for RF64 the one that holds its size, whose own size is then that."""
    place, sizes = kind.first, None
    header_bytes = kind.id_bytes + kind.size_bytes
    for _ in range(_MAX_CHUNKS):
        header = read_at(file, place, header_bytes)
        if len(header) < header_bytes:
            return None
        name, length = header[: kind.id_bytes], int.from_bytes(header[kind.id_bytes :], kind.order)
        length -= header_bytes if kind.size_includes_header else 0
        start = place + header_bytes
        if name in kind.audio:
            chunk = _Chunk(name, length, place + kind.id_bytes, start)
            return chunk, sizes if length == 0xFFFFFFFF else None
        if name == b"ds64" and length >= 24:
            sizes = _Chunk(name, int.from_bytes(read_at(file, start + 8, 8), "little"), 0, start)
        if length < 0 or start + length > size:
            return None
        place = start + length + -length % kind.alignment
    return None


def _is_unknown(size: int) -> bool:
    return size == 0 or 0x7FFFF000 <= size <= 0x80000000 or size >= 0xFFFFFF00
