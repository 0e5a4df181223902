"""A FLAC writer (RFC 9639) that emits on request what encoders rarely do: wasted bits, escaped partitions, verbatim
subframes, both Rice methods, any block sizes, seek tables true or false. Its files are checked with libFLAC.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_RATES = {
    88200: 1,
    176400: 2,
    192000: 3,
    8000: 4,
    16000: 5,
    22050: 6,
    24000: 7,
    32000: 8,
    44100: 9,
    48000: 10,
    96000: 11,
}
_BITS = {8: 1, 12: 2, 16: 4, 20: 5, 24: 6}
_FIXED = ((), (1,), (2, -1), (3, -3, 1), (4, -6, 4, -1))


@dataclass
class Flac:
    """A file under construction, and where its parts are.

    Attributes:
        samples: `[n, channels]` int64.
        points: first sample, byte offset from the first frame, and samples of each frame.
    """

    samples: np.ndarray
    bits: int
    rate: int
    blocks: list[int]
    variable: bool
    seek_table: bool
    md5: bool = True
    known_length: bool = True
    frames: list[bytes] = field(default_factory=list)

    @property
    def points(self) -> list[tuple[int, int, int]]:
        found, sample, offset = [], 0, 0
        for block, frame in zip(self.blocks, self.frames, strict=True):
            found.append((sample, offset, block))
            sample, offset = sample + block, offset + len(frame)
        return found

    def encode(self, choose: random.Random) -> None:
        """Makes the frames."""
        start = 0
        for number, block in enumerate(self.blocks):
            samples = self.samples[start : start + block]
            self.frames.append(_frame(choose, self, start if self.variable else number, samples))
            start += block

    def file(self, points: Sequence[tuple[int, int, int]] | None = None) -> bytes:
        """The whole file; `points` instead of its own seek points."""
        count, channels = self.samples.shape
        largest = max(16, *self.blocks)
        smallest = max(16, min(self.blocks[:-1], default=largest)) if self.variable else largest
        packed = self.rate << 44 | (channels - 1) << 41 | (self.bits - 1) << 36 | count * self.known_length
        width = (self.bits + 7) // 8
        raw = self.samples.astype("<i4").tobytes()
        little = np.frombuffer(raw, np.uint8).reshape(-1, 4)[:, :width].tobytes()
        digest = hashlib.md5(little, usedforsecurity=False).digest() if self.md5 else bytes(16)
        info = smallest.to_bytes(2, "big") + largest.to_bytes(2, "big") + bytes(6) + packed.to_bytes(8, "big") + digest
        blocks = [(0, info)]
        if self.seek_table:
            table = [
                first.to_bytes(8, "big") + offset.to_bytes(8, "big") + length.to_bytes(2, "big")
                for first, offset, length in (self.points if points is None else points)
            ]
            blocks.append((3, b"".join(table)))
        blocks.append((1, bytes(7)))
        header = b"".join(
            bytes([kind | (0x80 if place == len(blocks) - 1 else 0)]) + len(body).to_bytes(3, "big") + body
            for place, (kind, body) in enumerate(blocks)
        )
        return b"fLaC" + header + b"".join(self.frames)


def crc(data: bytes, polynomial: int, width: int) -> int:
    """The remainder of `data` by a polynomial of `width` bits, its highest left out."""
    remainder, top, mask = 0, 1 << (width - 1), (1 << width) - 1
    for byte in data:
        remainder ^= byte << (width - 8)
        for _ in range(8):
            remainder = ((remainder << 1) ^ (polynomial if remainder & top else 0)) & mask
    return remainder


_CRC16 = [crc(bytes([byte]), 0x8005, 16) for byte in range(256)]


def _crc16(data: bytes) -> int:
    remainder = 0
    for byte in data:
        remainder = (remainder << 8 & 0xFFFF) ^ _CRC16[remainder >> 8 ^ byte]
    return remainder


def random_flac(choose: random.Random, *, bits: int | None = None, channels: int | None = None) -> Flac:
    """A file of any shape."""
    bits = bits or choose.choice(((8, 16, 24), range(4, 25))[choose.random() < 0.2])
    channels = channels or choose.choice((1, 1, 2, 2, 2, 3, 5, 8))
    rate = choose.choice((*_RATES, 7000, 12345, 300_010))
    variable = choose.random() < 0.4
    count = choose.choice((1, 3, 16, 40, 192, 576, 700, 1500))
    if variable:
        blocks: list[int] = []
        while (left := count - sum(blocks)) > 0:
            blocks.append(min(left, choose.choice((16, 17, 64, 192, 255, 256, 300))))
    else:
        block = choose.choice((16, 17, 100, 192, 256, 512, 576, 1024, 4096))
        blocks = [min(block, count - start) for start in range(0, count, block)]
    samples = np.stack([_signal(choose, count, bits) for _ in range(channels)], 1)
    if channels == 2 and choose.random() < 0.6:
        samples[:, 1] = np.clip(samples[:, 0] + np.array([choose.randint(-3, 3) for _ in range(count)]), *_range(bits))
    file = Flac(
        samples, bits, rate, blocks, variable, choose.random() < 0.6, choose.random() < 0.8, choose.random() < 0.9
    )
    file.encode(choose)
    return file


def _range(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _signal(choose: random.Random, count: int, bits: int) -> np.ndarray:
    low, high = _range(bits)
    time = np.arange(count)
    noise = np.array([choose.gauss(0, 1) for _ in range(count)])
    kind = choose.randrange(7)
    if kind == 0:
        values = np.array([choose.randint(low, high) for _ in range(count)])
    elif kind == 1:
        values = high * 0.7 * np.sin(time * choose.uniform(0.001, 1.5)) + noise * choose.choice((0, 1, 30))
    elif kind == 2:
        values = np.full(count, choose.choice((0, low, high, choose.randint(low, high))))
    elif kind == 3:
        values = np.cumsum(noise) * high * 0.01
    elif kind == 4:
        values = np.where(noise > 2.2, high, noise)  # rare peaks: long unary codes
    elif kind == 5:
        values = np.where(time % 2, low, high)
    else:
        values = noise * high * choose.choice((0.001, 0.1, 0.3))
    clipped = np.clip(np.rint(values), low, high).astype(np.int64)
    wasted = choose.choice((0, 0, 0, 1, 3)) if bits > 4 else 0
    return clipped >> wasted << wasted


def _bit(value: int, width: int) -> str:
    return format(value & ((1 << width) - 1), f"0{width}b") if width else ""


def _number(value: int) -> bytes:
    """The coded number of a frame header, as UTF-8 extended to 36 bits."""
    if value < 0x80:
        return bytes([value])
    more = 1
    while value >> (6 * more + 6 - more):
        more += 1
    lead = ((0xFF00 >> (more + 1)) & 0xFF) | value >> (6 * more)
    return bytes([lead, *(0x80 | value >> (6 * place) & 0x3F for place in reversed(range(more)))])


def _frame(choose: random.Random, file: Flac, number: int, samples: np.ndarray) -> bytes:
    block, channels = samples.shape
    named = {192: 1, **{576 << i: 2 + i for i in range(4)}, **{256 << i: 8 + i for i in range(8)}}
    if block in named and choose.random() < 0.7:
        block_code, trailer = named[block], b""
    elif block <= 256 and choose.random() < 0.7:
        block_code, trailer = 6, bytes([block - 1])
    else:
        block_code, trailer = 7, (block - 1).to_bytes(2, "big")
    rate = file.rate
    codes: list[tuple[int, bytes]] = [(0, b"")]
    if rate in _RATES:
        codes.append((_RATES[rate], b""))
    if rate % 1000 == 0 and rate < 256_000:
        codes.append((12, bytes([rate // 1000])))
    if rate < 65536:
        codes.append((13, rate.to_bytes(2, "big")))
    if rate % 10 == 0:
        codes.append((14, (rate // 10).to_bytes(2, "big")))
    rate_code, rate_trailer = choose.choice(codes)
    bits_code = _BITS[file.bits] if file.bits in _BITS and choose.random() < 0.7 else 0
    stereo = choose.choice((1, 8, 9, 10)) if channels == 2 else channels - 1
    header = bytes([0xFF, 0xF8 | file.variable, block_code << 4 | rate_code, stereo << 4 | bits_code << 1])
    header += _number(number) + trailer + rate_trailer
    header += bytes([crc(header, 0x07, 8)])

    coded, widths = [samples[:, channel] for channel in range(channels)], [file.bits] * channels
    if channels == 2 and stereo >= 8:
        left, right = coded
        side, middle = left - right, left + right >> 1
        coded = {8: [left, side], 9: [side, right], 10: [middle, side]}[stereo]
        widths[0 if stereo == 9 else 1] += 1
    body = "".join(_subframe(choose, values, width) for values, width in zip(coded, widths, strict=True))
    body += "0" * (-len(body) % 8)
    frame = header + int(body, 2).to_bytes(len(body) // 8, "big")
    return frame + _crc16(frame).to_bytes(2, "big")


def _subframe(choose: random.Random, values: np.ndarray, width: int) -> str:
    wasted = 0
    while wasted < width - 1 and choose.random() < 0.8 and values.any() and not (values & ((2 << wasted) - 1)).any():
        wasted += 1
    values, width = values >> wasted, width - wasted
    tail = "1" + "0" * (wasted - 1) + "1" if wasted else "0"
    count = len(values)
    # libFLAC takes no predictor of as many coefficients as there are samples.
    kinds = ["verbatim", "fixed", "fixed", *(["linear"] * 3 if count > 1 else [])]
    if (values == values[0]).all():
        kinds += ["constant"] * 6
    kind = choose.choice(kinds)
    if kind == "constant":
        return "0000000" + tail + _bit(int(values[0]), width)
    if kind == "verbatim":
        return "0000001" + tail + "".join(_bit(value, width) for value in values.tolist())
    if kind == "fixed":
        order = choose.randint(0, min(4, count - 1))
        return (
            "0" + _bit(8 + order, 6) + tail + "".join(_bit(value, width) for value in values[:order].tolist())
            + _residual(choose, values, order, _FIXED[order], 0)
        )  # fmt: skip
    order = choose.randint(1, min(choose.choice((4, 8, 12, 32)), count - 1))
    precision = choose.choice((2, 7, 12, 14, 15))
    shift = choose.randint(0, min(15, precision))
    # Predictions of any size, but residuals that fit 32 bits.
    wild = choose.random() < 0.2 and width + precision - shift <= 24
    most = (1 << (precision - 1)) - 1
    coefficients = [
        choose.randint(-most - 1, most)
        if wild
        else int(np.clip(round(choose.gauss(0, 0.4) * (1 << shift)), -most, most))
        for _ in range(order)
    ]
    return (
        "0" + _bit(31 + order, 6) + tail + "".join(_bit(value, width) for value in values[:order].tolist())
        + _bit(precision - 1, 4) + _bit(shift, 5) + "".join(_bit(c, precision) for c in coefficients)
        + _residual(choose, values, order, coefficients, shift)
    )  # fmt: skip


def _residual(choose: random.Random, values: np.ndarray, order: int, coefficients: Sequence[int], shift: int) -> str:
    count = len(values)
    predicted = sum(
        (c * values[order - 1 - place : count - 1 - place] for place, c in enumerate(coefficients)),
        np.zeros(count - order, np.int64),
    )
    residual = (values[order:] - (predicted >> shift)).tolist()
    method = choose.randrange(2)
    fitting = [p for p in range(9) if count % (1 << p) == 0 and count >> p >= max(order, 1)]
    partition_order = choose.choice(fitting)
    size = count >> partition_order
    parts, done = [_bit(method, 2), _bit(partition_order, 4)], 0
    for end in range(size, count + 1, size):
        part = residual[done : end - order]
        done = end - order
        parts.append(_partition(choose, part, method))
    return "".join(parts)


def _partition(choose: random.Random, part: list[int], method: int) -> str:
    width = 5 if method else 4
    folded = [value << 1 if value >= 0 else (-value << 1) - 1 for value in part]
    mean = sum(folded) / max(len(folded), 1)
    best = max(0, int(mean).bit_length() - 1)
    needed = max((value.bit_length() + 1 for value in (v if v >= 0 else ~v for v in part)), default=0)
    if (choose.random() < 0.1 or best > (30 if method else 14)) and needed < 32:
        needed = 0 if not any(part) else min(31, needed + choose.choice((0, 0, 2)))
        return "1" * width + _bit(needed, 5) + "".join(_bit(value, needed) for value in part)
    parameter = min(30 if method else 14, max(0, best + choose.choice((-1, 0, 0, 0, 1))))
    codes = [_bit(parameter, width)]
    for value in folded:
        codes.append("0" * (value >> parameter) + "1" + _bit(value, parameter))
    return "".join(codes)
