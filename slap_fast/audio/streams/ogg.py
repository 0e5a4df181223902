"""Ogg files: the links of a chain, and whether the last page is whole.

libsndfile reads the first link alone. Source: RFC 3533.
"""

from __future__ import annotations

import io
from typing import BinaryIO

from slap_fast.audio.streams.byte_view import Part, Stretches, read_at

_HEADER_BYTES = 27
_FIRST, _LAST = 0x02, 0x04
_SEARCH_BYTES = 1 << 16


def ogg_stretches(file: BinaryIO | io.RawIOBase, size: int) -> Stretches | None:
    """Walks the pages of a file of `size` bytes; None where it is no Ogg, or one whole stream."""
    if read_at(file, 0, 4) != b"OggS":
        return None
    starts: list[int] = []
    pages: dict[bytes, int] = {}  # of a link: the number of each stream's last page
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
            # How much was lost nobody knows; more than nothing.
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
        notes.append(("cut_short", "the last Ogg page does not end the stream: it was cut off, or recorded from one"))
    if lost:
        notes.append(("lost_pages", f"{lost} Ogg pages are missing in between"))
    if stray:
        notes.append(("trailing_bytes", f"{stray} bytes between or after the Ogg pages were not read"))
    ends = [*starts[1:], size]
    parts = tuple(Part(start, end) for start, end in zip(starts, ends, strict=True)) if len(starts) > 1 else ()
    detail = f"the Ogg page at byte {place} ends beyond the file" if missing else ""
    return Stretches(parts, missing, detail, tuple(notes))


def _find_page(file: BinaryIO | io.RawIOBase, place: int, size: int) -> int:
    while place < size:
        block = read_at(file, place, _SEARCH_BYTES)
        if (found := block.find(b"OggS")) >= 0:
            return place + found
        if len(block) < _SEARCH_BYTES:
            break
        place += len(block) - 3
    return size
