"""MPEG audio (MP3, MP2): counts the frames.

Without a Xing header libsndfile estimates the length from the bitrate of the first frame and stops there; of
concatenated files with Xing headers it reads the first. So a silent frame of the lowest bitrate is inserted before such
a stream, which makes the estimate long enough, and the length is that of the counted frames.

Source: ISO 11172-3, 13818-3; the Xing header as written by LAME and read by mpg123.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

from slap_fast.audio.containers.byte_view import StreamLayout, StreamPart, read_at

_WINDOW_BYTES = 1 << 18
_STRAY_BYTES = 4096  # fewer are tags or parts of a frame and not noted; mpg123 gives up after 1,024
_RESYNC_BYTES = 512
_MIN_RUN = 4  # frames; fewer are random bytes that look like frames
_MISCOUNT = 2  # frames; some encoders count the header frame
_RATES = (44_100, 48_000, 32_000)
# kbit/s by index, 1 to 14.
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip


@dataclass(frozen=True)
class _Frame:
    size: int
    kind: tuple[int, int, int]  # version bits, layer, Hz: constant within a stream
    samples: int
    protected: bool


@dataclass
class _Run:
    """Consecutive frames of one kind.

    Attributes:
        start, end: byte range.
        frames: number of frames, without a frame that only holds a Xing or VBRI header.
        header: first 4 bytes of the first frame.
        declared: frame count in the Xing header; None without one.
        skip: bytes of the frame that only holds a header.
    """

    start: int
    kind: tuple[int, int, int, bool]
    header: bytes
    end: int = 0
    frames: int = 0
    declared: int | None = None
    skip: int = 0


def mpeg_layout(file: BinaryIO | io.RawIOBase, size: int) -> StreamLayout | None:
    """Count the frames of a file of `size` bytes; None without frames, or with free-format ones, which have no size."""
    runs, stray = _FrameScanner(file, size).scan()
    longest = max((run.frames for run in runs), default=0)
    runs = [run for run in runs if run.frames >= min(_MIN_RUN, longest)]
    if not longest:
        return None
    declared = sum(max(run.frames, (run.declared or 0) - _MISCOUNT) for run in runs)
    held = sum(run.frames for run in runs)
    notes: tuple[tuple[str, str], ...] = ()
    if stray > _STRAY_BYTES:
        notes = (("trailing_bytes", f"{stray} bytes between or after the frames are not MPEG audio"),)
    detail = f"the header declares {declared} frames, the file holds {held}"
    return StreamLayout(tuple(map(_part, runs)), 1 - held / declared, detail, notes)


def _part(run: _Run) -> StreamPart:
    layer = run.kind[1]
    if layer != 3 or (run.declared is not None and run.declared >= run.frames):
        # mpg123 reads Xing headers of Layer III only; the bitrate of other layers does not vary.
        return StreamPart(run.start, run.end)
    second = run.header[1] | 1  # no checksum
    third = 0x10 | run.header[2] & 0x0C  # the lowest bitrate, no padding
    frame = _frame(second, third)
    assert frame is not None
    head = bytes([0xFF, second, third, run.header[3]]).ljust(frame.size, b"\0")
    return StreamPart(run.start + run.skip, run.end, head, skip=frame.samples, samples=run.frames * frame.samples)


def _side_bytes(header: bytes) -> int:
    mono = header[3] >> 6 == 3
    return (17 if mono else 32) if header[1] & 0x08 else (9 if mono else 17)


@cache
def _frame(second: int, third: int) -> _Frame | None:
    """Parse the second and third byte of a frame header; None if they are invalid."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = 1000 * _BITRATES[1 if version == 3 else 2, layer][bitrate - 1]
    padding = third >> 1 & 1
    if layer == 1:
        size = (12 * bits // hertz + padding) * 4
    else:
        size = (72 if layer == 3 and version != 3 else 144) * bits // hertz + padding
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    return _Frame(size, (version, layer, hertz), samples, not second & 1)


class _FrameScanner:
    def __init__(self, file: BinaryIO | io.RawIOBase, size: int) -> None:
        self._file, self._size = file, size
        self._window, self._first = b"", 0

    def scan(self) -> tuple[list[_Run], int]:
        """All runs of frames, and the number of other bytes, without tags."""
        runs: list[_Run] = []
        run: _Run | None = None
        place, gap, stray = 0, 0, 0
        while place + 4 <= self._size:
            at = self._load(place, 4)
            window = self._window
            frame = _frame(window[at + 1], window[at + 2]) if window[at] == 0xFF else None
            if frame is not None and place + frame.size <= self._size:
                kind = (*frame.kind, window[at + 3] >> 6 == 3)
                goes_on = run is not None and run.kind == kind and not gap
                # Two headers in a row are not a coincidence.
                if goes_on or self._confirmed(place, frame):
                    header = window[at : at + 4]
                    declared, skip = self._parse_header_frame(place, frame, header)
                    if run is None or run.kind != kind or gap > _RESYNC_BYTES or skip:
                        run = _Run(place, kind, header, declared=declared, skip=skip)
                        runs.append(run)
                    run.frames += not skip
                    place += frame.size
                    run.end = place
                    gap = 0
                    continue
            step, tag = self._skip(place)
            gap += step
            stray += 0 if tag else step
            place += step
        return runs, stray

    def _confirmed(self, place: int, frame: _Frame) -> bool:
        following = place + frame.size
        if following + 4 > self._size:
            return True
        at = self._load(following, 4)
        if self._window[at] != 0xFF:
            return self._tag_bytes(following) > 0
        after = _frame(self._window[at + 1], self._window[at + 2])
        return after is not None and after.kind == frame.kind

    def _parse_header_frame(self, place: int, frame: _Frame, header: bytes) -> tuple[int | None, int]:
        """Frame count in a Xing header, and the bytes of the frame if it only holds a Xing or VBRI header."""
        if frame.kind[1] != 3:
            return None, 0
        offset = 4 + _side_bytes(header)
        # Reads as much as the longest header needs.
        at = self._load(place, min(52, frame.size))
        window = self._window
        for start in (at + offset, at + offset + 2 * frame.protected):
            if window[start : start + 4] in (b"Xing", b"Info"):
                count = int.from_bytes(window[start + 8 : start + 12], "big") if window[start + 7] & 1 else None
                return count or None, frame.size
        return None, frame.size if window[at + 36 : at + 40] == b"VBRI" else 0

    def _skip(self, place: int) -> tuple[int, bool]:
        """Bytes to the next possible frame start, and whether they are a tag."""
        if size := self._tag_bytes(place):
            return min(size, self._size - place), True
        at = self._load(place, 4)
        found = self._window.find(b"\xff", at + 1)
        return (found if found >= 0 else len(self._window)) - at, False

    def _tag_bytes(self, place: int) -> int:
        at = self._load(place, min(32, self._size - place))
        tag = self._window[at : at + 32]
        if tag[:3] == b"ID3" and len(tag) >= 10:
            size = 0
            for byte in tag[6:10]:
                size = size << 7 | byte & 0x7F
            return size + 10
        if tag[:3] == b"TAG":
            return 128
        if tag[:8] == b"APETAGEX" and len(tag) == 32:
            # The size includes the footer, but not the header, which a flag announces.
            return int.from_bytes(tag[12:16], "little") + (32 if tag[23] & 0x20 else 0) or 32
        return 0

    def _load(self, place: int, size: int) -> int:
        """Load bytes `[place, place + size)` into the window; returns their offset in it."""
        if not self._first <= place <= place + size <= self._first + len(self._window):
            self._window, self._first = read_at(self._file, place, max(size, _WINDOW_BYTES)), place
        return place - self._first
