"""FLAC crops: whether a crop of a file can be decoded by its seek table."""

from __future__ import annotations

import numpy as np

from slap_fast.audio.flac_seek_table import HEADER_BYTES, POINT, TABLE_OFFSET, frame_header
from slap_fast.data.decoding.decoder import Blob, Crop


def can_enter(blob: Blob, first_frame: int, samples: int, crop: Crop) -> bool:
    """Whether the file has a true seek table, as `slap-fast prepare` writes it, to enter it at `crop`.

    Other files are left to soundfile: libFLAC looks for the crop by its position among the bytes, on which other frames
    bear, damaged ones too, and fails if a table is wrong. Only then do all decoders fail on the same clips.

    Args:
        blob: a FLAC file of `samples`.
        first_frame: its byte offset.
    """
    block = int.from_bytes(blob[8:10], "big")
    size = int.from_bytes(blob[43:46], "big")
    if block == 0 or blob[8:10] != blob[10:12] or blob[TABLE_OFFSET] != 3:
        return False
    # A STREAMINFO block that is longer than by the standard may hold bytes that look like a table.
    if size < POINT.itemsize or TABLE_OFFSET + 4 + size > first_frame:
        return False
    points = np.frombuffer(blob, POINT, size // POINT.itemsize, TABLE_OFFSET + 4)
    spacing = int(points["sample"][1]) if len(points) > 1 else -(-samples // block) * block
    places = points["offset"].astype(np.int64) + first_frame
    true = (
        spacing > 0
        and spacing % block == 0
        and len(points) == -(-samples // spacing)
        and bool((points["sample"] == np.arange(len(points)) * spacing).all())
        and bool((points["samples"][:-1] == block).all())
        and 0 < points["samples"][-1] <= block
        and bool((np.diff(places) > 0).all())
    )
    if not true:
        return False
    near = [point for point in (crop[0] // spacing, crop[0] // spacing + 1) if point < len(points)]
    return all(_is_frame(blob, int(places[point]), point * spacing, block, samples) for point in near)


def _is_frame(blob: Blob, place: int, sample: int, block: int, samples: int) -> bool:
    head = bytes(blob[place : place + HEADER_BYTES])
    header = frame_header(head[:4], sample // block, min(block, samples - sample))
    return header is not None and head.startswith(header)
