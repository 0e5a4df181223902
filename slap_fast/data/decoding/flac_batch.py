"""FLAC batch: the files of a batch that a FLAC decoder takes, and soundfile for all others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slap_fast.data.decoding.decoder import Blob, Crop, DecodeFailure
from slap_fast.data.decoding.soundfile_decoder import SoundfileDecoder


class FlacBatch(NamedTuple):
    """N of the files of a batch, end to end.

    Attributes:
        items: where each is in the batch.
        data: `[B]` uint8 on the CPU.
        offsets: `[N + 1]` int64, where each file is in `data`.
        samples: `[N]` int64, the number of samples wanted of each.
        starts: `[N]` int64, the first sample wanted of each; None if whole files are.
    """

    items: list[int]
    data: Tensor
    offsets: Tensor
    samples: Tensor
    starts: Tensor | None

    @classmethod
    def pack(
        cls, items: list[int], blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None], data: Tensor
    ) -> FlacBatch:
        """Copies the files `items` of a batch to `data`, which has their size."""
        offsets = list(accumulate((len(blobs[item]) for item in items), initial=0))
        out = data.numpy()
        for item, begin, end in zip(items, offsets[:-1], offsets[1:], strict=True):
            out[begin:end] = np.frombuffer(blobs[item], np.uint8)
        ranges = [crops[item] or (0, samples[item]) for item in items]
        cropped = any(crops[item] is not None for item in items)
        return cls(
            items,
            data,
            torch.tensor(offsets, dtype=torch.int64),
            torch.tensor([end - start for start, end in ranges], dtype=torch.int64),
            torch.tensor([start for start, _ in ranges], dtype=torch.int64) if cropped else None,
        )


def header_matches(blob: Blob, sample_rate: int, samples: int) -> bool:
    """Whether `blob` is mono FLAC of this sample rate and length by its metadata (RFC 9639, 8), and a frame follows it.

    A decoder would allocate whatever length a header claims. Where no frame follows, DALI would look for the next one;
    soundfile fails.
    """
    if len(blob) < 42 or blob[:4] != b"fLaC" or blob[4] & 0x7F != 0 or samples == 0:
        return False
    packed = int.from_bytes(blob[18:26], "big")
    channels = (packed >> 41 & 0b111) + 1
    if (packed >> 44, channels, packed & (2**36 - 1)) != (sample_rate, 1, samples):
        return False
    place, last = 4, False
    while not last:
        header = blob[place : place + 4]
        if len(header) < 4:
            return False
        last = bool(header[0] & 0x80)
        place += 4 + int.from_bytes(header[1:], "big")
    return bytes(blob[place : place + 2]) in (b"\xff\xf8", b"\xff\xf9")


def complete(
    decoded: Sequence[Tensor | None],
    soundfile: SoundfileDecoder,
    blobs: Sequence[Blob],
    samples: Sequence[int],
    crops: Sequence[Crop | None],
) -> list[Tensor | DecodeFailure]:
    """`decoded`, with soundfile's waveform or reason for each clip that has none yet."""
    rest = [item for item, waveform in enumerate(decoded) if waveform is None]
    outcomes = iter(
        soundfile.decode(
            [blobs[item] for item in rest], [samples[item] for item in rest], [crops[item] for item in rest]
        )
    )
    return [next(outcomes) if waveform is None else waveform for waveform in decoded]
