"""FLAC batch: the files of a batch that a FLAC decoder takes, and another decoder for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slap_fast.audio.flac_seek_table import TABLE_OFFSET
from slap_fast.data.decoding.decoder import Blob, Crop, DecodeFailure, Decoder
from slap_fast.data.decoding.flac_crops import can_enter

_PADDING, _SEEKTABLE, _VORBIS_COMMENT = 1, 3, 4  # types of metadata blocks


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


def suitable(
    blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None], sample_rate: int
) -> list[int]:
    """The files of a batch that `decode_flac` decodes as soundfile would, if they are intact."""
    items = []
    for item, (blob, count, crop) in enumerate(zip(blobs, samples, crops, strict=True)):
        begin = first_frame(blob, sample_rate, count)
        if begin and (crop is None or can_enter(blob, begin, count, crop)):
            items.append(item)
    return items


def has_seek_table(blob: Blob) -> bool:
    """Whether a FLAC file has a SEEKTABLE block where `slap-fast prepare` writes it."""
    return len(blob) > TABLE_OFFSET and blob[TABLE_OFFSET] & 0x7F == _SEEKTABLE


def first_frame(blob: Blob, sample_rate: int, samples: int) -> int:
    """Byte offset of the first frame of mono FLAC of this sample rate and length; 0 if `blob` is something else.

    A decoder would allocate whatever length a header claims. Where no frame follows, DALI would look for the next one;
    soundfile fails. It also fails on some malformed metadata, which other decoders skip: there it decides.
    """
    if len(blob) < 42 or blob[:4] != b"fLaC" or blob[4] & 0x7F != 0 or samples == 0:
        return 0
    packed = int.from_bytes(blob[18:26], "big")
    channels = (packed >> 41 & 0b111) + 1
    if (packed >> 44, channels, packed & (2**36 - 1)) != (sample_rate, 1, samples):
        return 0
    place, last = 4, False
    while not last:
        header = blob[place : place + 4]
        if len(header) < 4:
            return 0
        last, kind = bool(header[0] & 0x80), header[0] & 0x7F
        place += 4
        end = place + int.from_bytes(header[1:], "big")
        if kind == _VORBIS_COMMENT and not _is_vorbis_comment(bytes(blob[place:end])):
            return 0
        if place > 8 and kind not in (_PADDING, _SEEKTABLE, _VORBIS_COMMENT):
            return 0
        place = end
    return place if bytes(blob[place : place + 2]) in (b"\xff\xf8", b"\xff\xf9") else 0


def _is_vorbis_comment(block: bytes) -> bool:
    """Whether the lengths in a VORBIS_COMMENT block (8.6) add up: vendor, number of comments, comments."""
    place = 4 + int.from_bytes(block[:4], "little")
    count = int.from_bytes(block[place : place + 4], "little")
    place += 4
    while count and place < len(block):
        place += 4 + int.from_bytes(block[place : place + 4], "little")
        count -= 1
    return count == 0 and place == len(block)


def complete(
    decoded: Sequence[Tensor | None],
    decoder: Decoder,
    blobs: Sequence[Blob],
    samples: Sequence[int],
    crops: Sequence[Crop | None],
) -> list[Tensor | DecodeFailure]:
    """`decoded`, with the waveform or reason of another decoder for each clip that has none yet."""
    rest = [item for item, waveform in enumerate(decoded) if waveform is None]
    outcomes = iter(
        decoder.decode([blobs[item] for item in rest], [samples[item] for item in rest], [crops[item] for item in rest])
    )
    return [next(outcomes) if waveform is None else waveform for waveform in decoded]
