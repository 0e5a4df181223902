"""Ogg: splits chained streams, and detects missing pages.

libsndfile reads only the first stream of a chain. Source: RFC 3533.
"""

from __future__ import annotations

import io
from typing import BinaryIO

from slap_fast.audio.containers.byte_view import StreamLayout, StreamPart, read_at

_HEADER_BYTES = 27
_FIRST, _LAST = 0x02, 0x04
_SEARCH_BYTES = 1 << 16


def ogg_layout(file: BinaryIO | io.RawIOBase, size: int) -> StreamLayout | None:
    """Scan the pages of a file of `size` bytes; None if it is not Ogg."""
    if read_at(file, 0, 4) != b"OggS":
        return None
    starts: list[int] = []
    pages: dict[bytes, int] = {}  # serial number of a logical stream -> number of its last page
    place, lost, stray, flags = 0, 0, 0, 0
    missing, opening = 0.0, False
    while place < size:
        header = read_at(file, place, _HEADER_BYTES + 255)
        if header[:4] != b"OggS"[: len(header)]:
            found = _find_page(file, place + 1, size)
            stray += found - place
            place = found
            continue
        length = size
        if len(header) > 26 and len(header) >= _HEADER_BYTES + header[26]:
            length = _HEADER_BYTES + header[26] + sum(header[_HEADER_BYTES : _HEADER_BYTES + header[26]])
        if place + length > size:
            # The amount that is missing is unknown.
            missing = 1.0
            break
        flags, serial, number = header[5], header[14:18], int.from_bytes(header[18:22], "little")
        if flags & _FIRST and not opening:
            starts.append(place)
            pages = {}
        opening = bool(flags & _FIRST)
        lost += max(0, number - pages.get(serial, number - 1) - 1)
        pages[serial] = number
        place += length
    notes = []
    if not flags & _LAST:
        notes.append(("cut_short", "the last Ogg page does not end the stream: cut off, or recorded from a stream"))
    if lost:
        notes.append(("lost_pages", f"{lost} Ogg pages are missing within the stream"))
    if stray:
        notes.append(("trailing_bytes", f"{stray} bytes between or after the Ogg pages were not read"))
    ends = [*starts[1:], size]
    parts = tuple(StreamPart(start, end) for start, end in zip(starts, ends, strict=True)) if len(starts) > 1 else ()
    detail = f"the Ogg page at byte {place} ends beyond the file" if missing else ""
    return StreamLayout(parts, missing, detail, tuple(notes))


def _find_page(file: BinaryIO | io.RawIOBase, place: int, size: int) -> int:
    while place < size:
        block = read_at(file, place, _SEARCH_BYTES)
        if (found := block.find(b"OggS")) >= 0:
            return place + found
        if len(block) < _SEARCH_BYTES:
            break
        place += len(block) - 3
    return size
