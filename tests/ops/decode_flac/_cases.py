"""Batches of FLAC files for the op and for tests/native/flac_test.cpp."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.oracles.flac import Flac, random_flac

DTYPES = (torch.float32, torch.int32, torch.int16)
NUMPY = (np.float32, np.int32, np.int16)


@dataclass
class Batch:
    """Files of one number of channels, and what they must give.

    Attributes:
        blobs: the files.
        samples: of each, `[n, channels]` integers.
        bits: of each.
        starts: first samples wanted; None: whole files.
        counts: samples wanted.
    """

    channels: int
    blobs: list[bytes]
    samples: list[np.ndarray]
    bits: list[int]
    starts: list[int] | None
    counts: list[int]

    @property
    def data(self) -> Tensor:
        return torch.frombuffer(bytearray(b"".join(self.blobs)), dtype=torch.uint8)

    @property
    def offsets(self) -> Tensor:
        return torch.tensor([0, *np.cumsum([len(blob) for blob in self.blobs]).tolist()])

    def expected(self, dtype: int) -> np.ndarray:
        """`[T, channels]`, by the definition of the sample types."""
        parts = []
        for place, (values, bits, count) in enumerate(zip(self.samples, self.bits, self.counts, strict=True)):
            start = self.starts[place] if self.starts else 0
            wanted = values[start : start + count]
            left = wanted << (32 - bits)
            parts.append((wanted / 2.0 ** (bits - 1), left, left >> 16)[dtype].astype(NUMPY[dtype]))
        return np.concatenate(parts)


def random_batch(seed: int, files: int = 6, *, crops: bool | None = None) -> Batch:
    """Files of any shape; some tables of seek points are false."""
    choose = random.Random(seed)
    channels = choose.choice((1, 1, 2, 2, 3, 8))
    made = [random_flac(choose, channels=channels) for _ in range(files)]
    blobs = [flac.file(_false_points(choose, flac) if choose.random() < 0.3 else None) for flac in made]
    lengths = [len(flac.samples) for flac in made]
    if choose.random() < 0.4 if crops is None else crops:
        starts = [choose.randint(0, length) for length in lengths]
        counts = [choose.randint(0, length - start) for length, start in zip(lengths, starts, strict=True)]
    else:
        starts, counts = None, lengths
    return Batch(channels, blobs, [flac.samples for flac in made], [flac.bits for flac in made], starts, counts)


def _false_points(choose: random.Random, flac: Flac) -> list[tuple[int, int, int]]:
    points = flac.points
    kind = choose.randrange(5)
    if kind == 0:
        return points[1:]
    if kind == 1:
        return [*points, (2**64 - 1, 0, 0)]  # a placeholder, which is allowed
    place = choose.randrange(len(points))
    sample, offset, count = points[place]
    wrong = [(sample + 1, offset, count), (sample, offset + 1, count), (sample, 2**63 + 5, count)][kind - 2]
    return [*points[:place], wrong, *points[place + 1 :]]


def double_batch() -> Batch:
    """Files with other frames behind their own, to which seek points lead: all, or those behind a true first one, or
    those behind a true last one.
    """
    choose = random.Random(3)
    count, blocks = 9000, [4096, 4096, 808]
    blobs, samples = [], []
    for kind in range(3):
        own, other = (
            Flac(np.array([[choose.randint(-99, 99)] for _ in range(count)]), 8, 16_000, blocks, False, seek_table=True)
            for _ in range(2)
        )
        own.encode(choose)
        other.encode(choose)
        end = sum(map(len, own.frames))
        elsewhere = [(sample, end + offset, length) for sample, offset, length in other.points]
        points = [elsewhere, [own.points[0], *elsewhere], [*own.points, (count, end, 0), *elsewhere[1:]]][kind]
        blobs.append(own.file(points) + b"".join(other.frames))
        samples.append(own.samples)
    return Batch(1, blobs, samples, [8] * 3, None, [count] * 3)


def encoded_batch(seed: int, files: int = 4) -> Batch:
    """Files by libFLAC's encoder, at all levels of compression."""
    import soundfile  # not at the top: tests for GPUs are collected without it

    generator = np.random.default_rng(seed)
    channels, bits = int(generator.integers(1, 3)), int(generator.choice([8, 16, 24]))
    blobs, samples = [], []
    for _ in range(files):
        count = int(generator.choice([1, 100, 4096, 9000, 20_000]))
        time = np.arange(count)[:, None]
        tones = np.sin(time * generator.uniform(0.001, 0.5, channels)) * generator.uniform(0, 0.7)
        noise = generator.standard_normal((count, channels)) * generator.choice([0, 1e-4, 0.1])
        values = np.clip(np.rint((tones + noise) * 2 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        samples.append(values.astype(np.int64))
        file = io.BytesIO()
        left = (samples[-1] << (32 - bits)).astype(np.int32)
        subtype = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}[bits]
        soundfile.write(file, left, 16_000, format="FLAC", subtype=subtype, compression_level=generator.uniform(0, 1))
        blobs.append(file.getvalue())
    return Batch(channels, blobs, samples, [bits] * files, None, [len(values) for values in samples])


def write_cases(path: Path, batches: list[tuple[Batch, int, int]]) -> None:
    """`(batch, index of the dtype, index of verify)` in the format of tests/native/flac_test.cpp."""
    with path.open("wb") as file:
        file.write(np.int32(len(batches)).tobytes())
        for batch, dtype, verify in batches:
            head = [batch.channels, dtype, verify, batch.starts is not None, len(batch.blobs)]
            file.write(np.array(head, np.int32).tobytes())
            starts = batch.starts or [0] * len(batch.blobs)
            for values in ([len(blob) for blob in batch.blobs], starts, batch.counts):
                file.write(np.array(values, np.int64).tobytes())
            file.write(b"".join(batch.blobs))


def read_results(path: Path, batches: list[tuple[Batch, int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(errors, samples [T, channels])` of each batch."""
    found, content, at = [], path.read_bytes(), 0
    for batch, dtype, _ in batches:
        files, rows = len(batch.blobs), sum(batch.counts)
        errors = np.frombuffer(content, np.int32, files, at)
        at += errors.nbytes
        samples = np.frombuffer(content, NUMPY[dtype], rows * batch.channels, at).reshape(rows, batch.channels)
        at += samples.nbytes
        found.append((errors, samples))
    assert at == len(content)
    return found
