"""FLAC files: those that were joined, at whose headers libFLAC loses its way, and what a header says of the length.

libsndfile reads no further than the header says. Source: RFC 9639.
"""

from __future__ import annotations

import io
import itertools
from typing import BinaryIO

from slap_fast.audio.streams.byte_view import Part, Stretches, read_at

# The marker, and the header of a STREAMINFO block, which comes first and has 34 bytes.
_HEADS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_COUNT = 21  # byte whose lower half, and the four after it, count the samples
_BLOCK_BYTES = 1 << 20


def flac_stretches(file: BinaryIO | io.RawIOBase, size: int) -> Stretches | None:
    """Finds the files that a FLAC file of `size` bytes was joined from; None where it is none.

    A part's decoder is told that its length is unknown, and so reads all of it.
    """
    if read_at(file, 0, 4) != b"fLaC":
        return None
    starts = {0}
    for place in range(0, size, _BLOCK_BYTES):
        block = read_at(file, place, _BLOCK_BYTES + len(_HEADS[0]) - 1)
        for head in _HEADS:
            found = block.find(head)
            while found >= 0:
                starts.add(place + found)
                found = block.find(head, found + 1)
    return Stretches(tuple(_part(file, *bounds) for bounds in itertools.pairwise([*sorted(starts), size])))


def _part(file: BinaryIO | io.RawIOBase, start: int, end: int) -> Part:
    count = read_at(file, start + _COUNT, 5)
    samples = int.from_bytes(count, "big") & (1 << 36) - 1
    unknown = bytes([count[0] & 0xF0, 0, 0, 0, 0]) if len(count) == 5 else count
    return Part(start, end, patches=((start + _COUNT, unknown),), samples=samples or None)
