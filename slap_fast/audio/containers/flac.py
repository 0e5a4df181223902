"""FLAC: splits concatenated files, at whose headers libFLAC fails, and reads the length from the header.

libsndfile stops at the length in the header. Source: RFC 9639.
"""

from __future__ import annotations

import io
import itertools
from typing import BinaryIO

from slap_fast.audio.containers.byte_view import StreamLayout, StreamPart, read_at

# The marker and the header of the STREAMINFO block of 34 bytes, which comes first.
_FILE_STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_COUNT = 21  # byte offset of the sample count: half of this byte and the next four
_BLOCK_BYTES = 1 << 20


def flac_layout(file: BinaryIO | io.RawIOBase, size: int) -> StreamLayout | None:
    """Find the concatenated files in a FLAC file of `size` bytes; None if it is not FLAC.

    The length in each header is patched to "unknown", so that the decoder reads the whole part.
    """
    if read_at(file, 0, 4) != b"fLaC":
        return None
    starts = {0}
    for place in range(0, size, _BLOCK_BYTES):
        block = read_at(file, place, _BLOCK_BYTES + len(_FILE_STARTS[0]) - 1)
        for head in _FILE_STARTS:
            found = block.find(head)
            while found >= 0:
                starts.add(place + found)
                found = block.find(head, found + 1)
    return StreamLayout(tuple(_part(file, *bounds) for bounds in itertools.pairwise([*sorted(starts), size])))


def _part(file: BinaryIO | io.RawIOBase, start: int, end: int) -> StreamPart:
    count = read_at(file, start + _COUNT, 5)
    samples = int.from_bytes(count, "big") & (1 << 36) - 1
    unknown = bytes([count[0] & 0xF0, 0, 0, 0, 0]) if len(count) == 5 else count
    return StreamPart(start, end, patches=((start + _COUNT, unknown),), samples=samples or None)
