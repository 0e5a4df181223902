"""Batch: the packed clips of one rank in one training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from slap_fast.ops.packed import PackedLayout


@dataclass(frozen=True)
class Batch:
    """N clips with one caption each. All random choices depend only on (seed, step, clip), not on the rank.

    Attributes:
        waveform: `[samples.total]` float32 in [-1, 1], packed clips. On a GPU from the start if it was decoded there.
        samples: layout of `waveform` (int64 offsets).
        frames: layout of the log-mel frames.
        tokens: layout of the audio encoder's tokens.
        time_masked: `[frames.total]` bool, True for frames masked by SpecAugment.
        mel_masked: `[N, n_mels]` bool, True for mel bins masked by SpecAugment.
        masked_tokens: `[M]` int64, ascending positions in the packed tokens that are masked for the student.
        masked: layout of `masked_tokens` by clip.
        input_ids: `[text.total]` int64, packed captions, each with its start and end token.
        text: layout of `input_ids`.
        clip_ids: `[N]` int64, clip numbers.
    """

    waveform: Tensor
    samples: PackedLayout
    frames: PackedLayout
    tokens: PackedLayout
    time_masked: Tensor
    mel_masked: Tensor
    masked_tokens: Tensor
    masked: PackedLayout
    input_ids: Tensor
    text: PackedLayout
    clip_ids: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on `device`, to be used on its current stream."""
        if self.waveform.is_cuda:
            # It was decoded on the GPU, on another stream: its memory must not be reused before this one is done.
            self.waveform.record_stream(torch.cuda.current_stream(self.waveform.device))
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
        }
        return Batch(**moved)

    def split(self, clips: int) -> list[Batch]:
        """Splits into batches of `clips` consecutive clips (the last may have fewer); tensors are views where possible.

        Raises:
            ValueError: `clips` is not positive.
        """
        samples, frames, tokens, masked, text = (
            layout.split(clips) for layout in (self.samples, self.frames, self.tokens, self.masked, self.text)
        )
        first_tokens = accumulate((part.total for part in tokens), initial=0)
        columns = zip(
            _split(self.waveform, samples),
            samples,
            frames,
            tokens,
            _split(self.time_masked, frames),
            self.mel_masked.split(clips),
            [part - first for part, first in zip(_split(self.masked_tokens, masked), first_tokens, strict=False)],
            masked,
            _split(self.input_ids, text),
            text,
            self.clip_ids.split(clips),
            strict=True,
        )
        return [Batch(*values) for values in columns]

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, including the offsets, so that copies to the GPU are asynchronous.

        A waveform that was decoded on a GPU stays there.
        """
        pinned: dict[str, Any] = {field.name: _pinned(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return Batch(**pinned)


def _pinned(value: Tensor | PackedLayout) -> Tensor | PackedLayout:
    if isinstance(value, PackedLayout):
        return PackedLayout(value.lengths, value.cu_seqlens.pin_memory())
    return value if value.is_cuda else value.pin_memory()


def _split(packed: Tensor, layouts: Sequence[PackedLayout]) -> tuple[Tensor, ...]:
    return packed.split([layout.total for layout in layouts])
