from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast.audio.flac_encoder import encode_flac
from slap_fast.audio.flac_seek_table import MAX_POINTS, TABLE_OFFSET, insert_bytes, seek_table

BLOCK = 4096


def random_pcm(samples: int) -> np.ndarray:
    """`[samples]` int16: noise of changing loudness, so that frames differ in size."""
    generator = np.random.default_rng(samples)
    return (
        (generator.standard_normal(samples) * 9000 * np.sin(np.arange(samples) / 9000)).clip(-32768, 32767).astype("i2")
    )


def encoded(pcm: np.ndarray, folder: Path) -> bytes:
    flac = encode_flac([pcm / np.float32(32768)], folder / "spill")
    assert flac.seekable
    data = flac.audio if isinstance(flac.audio, bytes) else flac.audio.read_bytes()
    assert len(data) == flac.size
    return data


def points_of(data: bytes) -> tuple[list[tuple[int, int, int]], int]:
    """`(first sample, byte offset in the file, samples)` of each point, and the offset of the first frame."""
    points, place, last = [], 4, False
    while not last:
        last, kind, size = (
            bool(data[place] & 0x80),
            data[place] & 0x7F,
            int.from_bytes(data[place + 1 : place + 4], "big"),
        )
        if kind == 3:
            assert place == TABLE_OFFSET
            rows = [data[row : row + 18] for row in range(place + 4, place + 4 + size, 18)]
            points = [tuple(int.from_bytes(row[a:b], "big") for a, b in ((0, 8), (8, 16), (16, 18))) for row in rows]
        place += 4 + size
    return [(sample, place + offset, samples) for sample, offset, samples in points], place


def flac_of(frames: bytes, streaminfo: bytes, samples: int) -> bytes:
    """A file of some frames of another one, without its MD5."""
    count = (int.from_bytes(streaminfo[10:18], "big") >> 36 << 36 | samples).to_bytes(8, "big")
    return b"fLaC\x80\x00\x00\x22" + streaminfo[:10] + count + bytes(16) + frames


@pytest.mark.parametrize("samples", [1, BLOCK - 1, BLOCK, BLOCK + 1, 40 * BLOCK, 9_000_000])
def test_every_point_is_a_frame_that_decodes_alone(samples: int, tmp_path: Path) -> None:
    # 9 M samples of noise leave the memory of the encoder; their frame numbers have 1 to 3 bytes.
    pcm = random_pcm(samples)
    data = encoded(pcm, tmp_path)
    points, first = points_of(data)
    assert [point[0] for point in points] == list(range(0, samples, BLOCK))
    assert points[0][1] == first
    ends = [point[1] for point in points[1:]] + [len(data)]
    for (sample, start, count), end in list(zip(points, ends, strict=True))[:: max(1, len(points) // 50)]:
        with soundfile.SoundFile(io.BytesIO(flac_of(data[start:end], data[8:42], count))) as alone:
            np.testing.assert_array_equal(alone.read(dtype="int16"), pcm[sample : sample + BLOCK])
    assert sum(point[2] for point in points) == samples


def test_other_readers_read_and_enter_a_file_with_a_table(tmp_path: Path) -> None:
    pcm = random_pcm(100_000)
    data = encoded(pcm, tmp_path)
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], pcm)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        for start in (99_999, 0, 50_001, BLOCK):
            file.seek(start)
            np.testing.assert_array_equal(file.read(5000, dtype="int16"), pcm[start : start + 5000])


def test_ffmpeg_reads_a_file_with_a_table(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pcm = random_pcm(100_000)
    with av.open(io.BytesIO(encoded(pcm, tmp_path))) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        np.testing.assert_array_equal(np.concatenate(frames, axis=1)[0], pcm)
        container.seek(int(50_000 / 16_000 * 1e6))
        entered = next(container.decode(audio=0))
        assert 0 < entered.pts <= 50_000
        np.testing.assert_array_equal(entered.to_ndarray()[0], pcm[entered.pts :][: entered.samples])


def coded(number: int) -> bytes:
    return chr(number).encode("utf-8", "surrogatepass")


@functools.cache
def crc_table(polynomial: int, bits: int) -> list[int]:
    values = [byte << (bits - 8) for byte in range(256)]
    for _ in range(8):
        values = [(value << 1 ^ (polynomial if value >> (bits - 1) else 0)) & ((1 << bits) - 1) for value in values]
    return values


def crc(data: bytes, polynomial: int, bits: int) -> bytes:
    table, value = crc_table(polynomial, bits), 0
    for byte in data:
        value = (value << 8 & ((1 << bits) - 1)) ^ table[value >> (bits - 8) ^ byte]
    return value.to_bytes(bits // 8, "big")


def tiny_frames(count: int) -> tuple[bytes, list[int]]:
    """A file of `count` frames of 16 equal samples, and the offset of each."""
    data = b"fLaC\x00\x00\x00\x22" + b"\x00\x10\x00\x10" + bytes(6)
    data += ((16_000 << 44) | (15 << 36) | 16 * count).to_bytes(8, "big") + bytes(16) + b"\x81\x00\x00\x00"
    frames, offsets, place = [], [], len(data)
    for number in range(count):
        header = b"\xff\xf8\x65\x08" + coded(number) + b"\x0f"
        frame = header + crc(header, 0x07, 8) + b"\x00" + (number % 30_000).to_bytes(2, "big")
        frames.append(frame + crc(frame, 0x8005, 16))
        offsets.append(place)
        place += len(frames[-1])
    return data + b"".join(frames), offsets


def test_frame_numbers_of_every_length_and_more_frames_than_points() -> None:
    count = 66_000
    data, offsets = tiny_frames(count)
    pcm, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert len(pcm) == 16 * count
    for limit, step in ((MAX_POINTS, 1), (count - 1, 2), (20_000, 4)):
        table = seek_table(io.BytesIO(data), [0, 4, 42, *offsets], 16 * count, max_points=limit)
        assert table is not None
        file = io.BytesIO(data)
        insert_bytes(file, TABLE_OFFSET, table)
        points, first = points_of(file.getvalue())
        assert [(sample, place - first, size) for sample, place, size in points] == [
            (16 * number, offsets[number] - offsets[0], 16) for number in range(0, count, step)
        ]
    file.seek(0)
    with soundfile.SoundFile(file) as entered:
        entered.seek(16 * 65_999 - 3)
        np.testing.assert_array_equal(entered.read(dtype="int16"), pcm[16 * 65_999 - 3 :])


def test_a_table_that_would_not_be_true_is_not_made() -> None:
    data, offsets = tiny_frames(40)
    samples = 16 * 40

    def made(data: bytes = data, writes: list[int] = offsets, samples: int = samples) -> bool:
        return seek_table(io.BytesIO(data), writes, samples) is not None

    assert made()
    assert not made(writes=offsets[:-1]), "two frames in one write"
    assert not made(writes=[*offsets[:7], offsets[7] + 1, *offsets[8:]]), "not at a frame"
    assert not made(writes=[])
    assert not made(samples=samples - 1), "another length"
    assert not made(samples=samples + 1)
    for damaged in (offsets[9], offsets[9] + 2, offsets[9] + 4, offsets[9] + 6, 0, 9):
        changed = bytearray(data)
        changed[damaged] ^= 1
        assert not made(bytes(changed)), damaged


@pytest.mark.parametrize("size", [0, 1, 1000, (16 << 20) * 2 + 5])
def test_bytes_are_inserted_anywhere(size: int, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(size)
    for place in {0, size // 2, size}:
        (tmp_path / "file").write_bytes(content)
        with open(tmp_path / "file", "r+b", buffering=0) as file:
            insert_bytes(file, place, b"inserted")
        assert (tmp_path / "file").read_bytes() == content[:place] + b"inserted" + content[place:]
