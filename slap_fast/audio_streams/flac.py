"""FLAC files that were joined: each has its own header, at which libFLAC loses its way. Source: RFC 9639."""

from __future__ import annotations

import io
import itertools
from typing import BinaryIO

from slap_fast.audio_streams.byte_view import Part, Stretches, read_at

# The marker, and the header of a STREAMINFO block, which comes first and has 34 bytes.
_HEADS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_BLOCK_BYTES = 1 << 20


def flac_stretches(file: BinaryIO | io.RawIOBase, size: int) -> Stretches | None:
    """Finds the files that a FLAC file of `size` bytes was joined from; None where it is one, or none."""
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
    if len(starts) == 1:
        return None
    bounds = [*sorted(starts), size]
    return Stretches(tuple(Part(start, end) for start, end in itertools.pairwise(bounds)))
