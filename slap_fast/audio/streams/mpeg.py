"""MPEG audio (MP3, MP2): its frames, counted.

Without a Xing header, libsndfile estimates the length from the first frame's bitrate and reads no further; of joined
files with Xing headers it reads the first. Here such a stream gets a silent frame of the lowest bitrate before it, with
which the estimate is never too short, and the frames were counted.

Source: ISO 11172-3, 13818-3; the Xing header as LAME and mpg123 write and read it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

from slap_fast.audio.streams.byte_view import Part, Stretches, read_at

_WINDOW_BYTES = 1 << 18
_STRAY_BYTES = 4096  # fewer are tags or a frame's rest, not worth a word; mpg123 gives up after 1,024
_RESYNC_BYTES = 512
_SHORTEST_RUN = 4  # frames; fewer are a chance find among other bytes
_MISCOUNTED = 2  # frames; some encoders count the header's own
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
    kind: tuple[int, int, int]  # version bits, layer, Hz: what one decoder keeps to
    samples: int
    protected: bool


@dataclass
class _Run:
    """Frames that follow each other, of one kind.

    Attributes:
        start, end: bytes.
        frames: their number, without one that only holds a Xing or VBRI header.
        header: of the first frame, 4 bytes.
        told: frames that the Xing header tells of, None where there is none.
        skip: bytes of a frame that holds only a header.
    """

    start: int
    kind: tuple[int, int, int, bool]
    header: bytes
    end: int = 0
    frames: int = 0
    told: int | None = None
    skip: int = 0


def mpeg_stretches(file: BinaryIO | io.RawIOBase, size: int) -> Stretches | None:
    """Counts the frames of a file of `size` bytes; None where it has none, or free-format ones, which tell no size."""
    runs, stray = _Walk(file, size).runs()
    longest = max((run.frames for run in runs), default=0)
    runs = [run for run in runs if run.frames >= min(_SHORTEST_RUN, longest)]
    if not longest:
        return None
    promised = sum(max(run.frames, (run.told or 0) - _MISCOUNTED) for run in runs)
    held = sum(run.frames for run in runs)
    notes: tuple[tuple[str, str], ...] = ()
    if stray > _STRAY_BYTES:
        notes = (("trailing_bytes", f"{stray} bytes between or after the frames are no MPEG audio"),)
    detail = f"the header promises {promised} frames, the file holds {held}"
    return Stretches(tuple(map(_part, runs)), 1 - held / promised, detail, notes)


def _part(run: _Run) -> Part:
    layer = run.kind[1]
    if layer != 3 or (run.told is not None and run.told >= run.frames):
        # mpg123 knows such headers of Layer III alone; other layers' bitrates do not vary.
        return Part(run.start, run.end)
    second = run.header[1] | 1  # no checksum
    third = 0x10 | run.header[2] & 0x0C  # the lowest bitrate, no padding
    frame = _frame(second, third)
    assert frame is not None
    head = bytes([0xFF, second, third, run.header[3]]).ljust(frame.size, b"\0")
    return Part(run.start + run.skip, run.end, head, skip=frame.samples, samples=run.frames * frame.samples)


def _side_bytes(header: bytes) -> int:
    mono = header[3] >> 6 == 3
    return (17 if mono else 32) if header[1] & 0x08 else (9 if mono else 17)


@cache
def _frame(second: int, third: int) -> _Frame | None:
    """What the second and third byte of a header say of a frame, or None where no frame starts so."""
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


class _Walk:
    def __init__(self, file: BinaryIO | io.RawIOBase, size: int) -> None:
        self._file, self._size = file, size
        self._window, self._first = b"", 0

    def runs(self) -> tuple[list[_Run], int]:
        """All runs of frames, and the number of other bytes, those of tags left out."""
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
                # Two headers in a row are no chance.
                if goes_on or self._confirmed(place, frame):
                    header = window[at : at + 4]
                    told, skip = self._told(place, frame, header)
                    if run is None or run.kind != kind or gap > _RESYNC_BYTES or skip:
                        run = _Run(place, kind, header, told=told, skip=skip)
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

    def _told(self, place: int, frame: _Frame, header: bytes) -> tuple[int | None, int]:
        """Frames that a Xing header tells of, and the bytes of the frame if it holds nothing but a header."""
        if frame.kind[1] != 3:
            return None, 0
        offset = 4 + _side_bytes(header)
        # The longest is read: this happens for every frame, and windows are cheap to look into.
        at = self._load(place, min(52, frame.size))
        window = self._window
        for start in (at + offset, at + offset + 2 * frame.protected):
            if window[start : start + 4] in (b"Xing", b"Info"):
                told = int.from_bytes(window[start + 8 : start + 12], "big") if window[start + 7] & 1 else None
                return told or None, frame.size
        return None, frame.size if window[at + 36 : at + 40] == b"VBRI" else 0

    def _skip(self, place: int) -> tuple[int, bool]:
        """How far it is to where a frame might start, and whether a tag is passed over."""
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
            # The size counts the footer; a header comes on top of it, as the flags say.
            return int.from_bytes(tag[12:16], "little") + (32 if tag[23] & 0x20 else 0) or 32
        return 0

    def _load(self, place: int, size: int) -> int:
        """Makes bytes `[place, place + size)` lie in the window; returns where in it."""
        if not self._first <= place <= place + size <= self._first + len(self._window):
            self._window, self._first = read_at(self._file, place, max(size, _WINDOW_BYTES)), place
        return place - self._first
