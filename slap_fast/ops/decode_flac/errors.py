"""Why a FLAC file has no samples: `FlacError`."""

from __future__ import annotations

from enum import IntEnum


class FlacError(IntEnum):
    """What `decode_flac` reports of each file. The values are those of csrc/flac/types.h."""

    OK = 0
    NOT_FLAC = 1
    TRUNCATED = 2
    BAD_HEADER = 3
    UNSUPPORTED = 4
    BAD_CRC = 5
    BAD_SUBFRAME = 6
    WRONG_LENGTH = 7
    WRONG_CHANNELS = 8
    BAD_MD5 = 9
    UNKNOWN_LENGTH = 10

    @property
    def reason(self) -> str:
        """One clause for a message, such as "a frame is damaged: its checksum is wrong"."""
        return _REASONS[self]


_REASONS = {
    FlacError.OK: "the file is intact",
    FlacError.NOT_FLAC: "the file is not FLAC",
    FlacError.TRUNCATED: "the file ends early",
    FlacError.BAD_HEADER: "a stream or frame header is malformed",
    FlacError.UNSUPPORTED: "the file has more than 24 bits a sample",
    FlacError.BAD_CRC: "a frame is damaged: its checksum is wrong",
    FlacError.BAD_SUBFRAME: "a frame is malformed: a reserved value, or a sample out of range",
    FlacError.WRONG_LENGTH: "the file has another number of samples",
    FlacError.WRONG_CHANNELS: "the file has another number of channels",
    FlacError.BAD_MD5: "the samples are not those that were encoded: their MD5 is wrong",
    FlacError.UNKNOWN_LENGTH: "the header does not say the number of samples; pass it",
}
