"""FLAC seek table: one point per frame, so that frames are decoded in parallel and a crop decodes its own frames only.

libsndfile writes none. Source: RFC 9639, sections 8.5 (SEEKTABLE) and 9.1 (frame header).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from slap_fast.audio.containers.byte_view import read_at

MAX_POINTS = ((1 << 24) - 1) // 18
"""The length of a metadata block has 24 bits: 932,067 points."""

TABLE_OFFSET = 42
"""Byte offset of the table: after the marker and the STREAMINFO block."""

HEADER_BYTES = 16
"""The longest frame header."""

POINT = np.dtype([("sample", ">u8"), ("offset", ">u8"), ("samples", ">u2")])
"""First sample of a frame, its byte offset from the first frame, its number of samples; 18 bytes."""

_SEEKTABLE = 3  # type of the metadata block
_SHIFTED_BYTES = 16 << 20  # moved at once
# Samples in a frame by the code in its header; codes 6 and 7 mean that the size follows, in so many bytes.
_SIZES = {1: 192} | {code: 576 << (code - 2) for code in range(2, 6)} | {code: 1 << code for code in range(8, 16)}
_SIZE_BYTES = {6: 1, 7: 2}


def seek_table(file: BinaryIO, writes: Sequence[int], samples: int, *, max_points: int = MAX_POINTS) -> bytes | None:
    """The SEEKTABLE block of a FLAC file that libFLAC has just written, to be inserted at `TABLE_OFFSET`.

    libFLAC passes each frame to its client in one write. Each frame header is checked all the same: sync code, number,
    block size and CRC-8.

    Args:
        file: the whole file.
        writes: ascending offsets of all writes at the end of the file.
        samples: length of the stream.
        max_points: a file with more frames gets a point at every second, third, ... frame.

    Returns:
        The block with its header; None if the writes are not the frames of this file.
    """
    head = read_at(file, 0, TABLE_OFFSET)
    smallest, block = (int.from_bytes(head[place : place + 2], "big") for place in (8, 10))
    # A table cannot follow the last metadata block; libFLAC always writes a VORBIS_COMMENT after STREAMINFO.
    if head[:8] != b"fLaC\x00\x00\x00\x22" or smallest != block or block == 0:
        return None
    first = _first_frame(file)
    offsets = writes[bisect_left(writes, first) :]
    if len(offsets) != -(-samples // block) or not len(offsets) or offsets[0] != first:
        return None
    for number, offset in enumerate(offsets):
        head = read_at(file, offset, HEADER_BYTES)
        header = frame_header(head[:4], number, min(block, samples - number * block))
        if header is None or not head.startswith(header):
            return None
    step = -(-len(offsets) // max_points)
    points = np.zeros(-(-len(offsets) // step), POINT)
    points["sample"] = np.arange(len(points), dtype=np.uint64) * np.uint64(step * block)
    points["offset"] = np.asarray(offsets[::step], np.uint64) - np.uint64(first)
    points["samples"] = block
    if (len(offsets) - 1) % step == 0:
        points["samples"][-1] = samples - (len(offsets) - 1) * block
    return bytes([_SEEKTABLE]) + points.nbytes.to_bytes(3, "big") + points.tobytes()


def insert_bytes(file: BinaryIO, offset: int, data: bytes) -> None:
    """Inserts `data` into a readable and writable file; memory does not grow with the file.

    Raises:
        OSError: the file cannot be written.
    """
    end = file.seek(0, 2)
    # From the end, so that nothing is overwritten before it was read.
    while end > offset:
        start = max(offset, end - _SHIFTED_BYTES)
        _write_at(file, start + len(data), read_at(file, start, end - start))
        end = start
    _write_at(file, offset, data)


def _first_frame(file: BinaryIO) -> int:
    """Offset of the first byte after the metadata blocks."""
    place, last = 4, False
    while not last:
        header = read_at(file, place, 4)
        if len(header) < 4:
            break
        last = bool(header[0] & 0x80)
        place += 4 + int.from_bytes(header[1:], "big")
    return place


@lru_cache(4096)  # most clips have the same headers
def frame_header(start: bytes, number: int, samples: int) -> bytes | None:
    """The header that begins with the 4 bytes `start`, of frame `number` in a stream of fixed block size.

    None if `start` has no sync code, or not the code of a block of `samples`. A sample rate after the block size, for
    which 16 kHz and other common ones have a code, is not supported.
    """
    if len(start) < 4 or start[:2] != b"\xff\xf8":
        return None
    code = start[2] >> 4
    size_bytes = _SIZE_BYTES.get(code, 0)
    if samples > 1 << 8 * size_bytes if size_bytes else samples != _SIZES.get(code):
        return None
    size = (samples - 1).to_bytes(size_bytes, "big") if size_bytes else b""
    header = start + _coded_number(number) + size
    return header + bytes([_crc8(header)])


def _coded_number(number: int) -> bytes:
    """A frame number, below 2^31, in the extended UTF-8 of RFC 9639, 9.1.5."""
    if number < 0x80:
        return bytes([number])
    following = 1
    while number >> (6 * following + 6 - following):
        following += 1
    lead = (0xFF00 >> (following + 1)) & 0xFF | number >> (6 * following)
    return bytes([lead, *(0x80 | number >> (6 * place) & 0x3F for place in reversed(range(following)))])


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc8_table() -> bytes:
    table = bytearray(range(256))
    for _ in range(8):
        for value, crc in enumerate(table):
            table[value] = crc << 1 & 0xFF ^ (0x07 if crc & 0x80 else 0)
    return bytes(table)


_CRC8 = _crc8_table()


def _write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    # A raw file may write less than it is given.
    file.seek(offset)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
