"""One rank's share of one training step, packed: what the loader hands to the model."""

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
    """N clips with one caption each. Every random choice in it depends only on (seed, step, clip), never on the rank.

    Attributes:
        waveform: `[samples.total]` float32 in [-1, 1], clips end to end.
        samples: layout of `waveform` (int64 offsets).
        frames: layout of the log-mel frames.
        tokens: layout of the audio encoder's tokens.
        time_masked: `[frames.total]` bool, True where SpecAugment blanks a frame.
        mel_masked: `[N, n_mels]` bool, True where SpecAugment blanks a mel bin of a clip.
        masked_tokens: `[M]` int64, ascending positions into the packed tokens that the student does not see.
        masked: layout of `masked_tokens` by clip.
        input_ids: `[text.total]` int64, captions end to end, each with its start and end token.
        text: layout of `input_ids`.
        clip_ids: `[N]` int64, equal for equal clips.
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
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
        }
        return Batch(**moved)

    def split(self, clips: int) -> list[Batch]:
        """Batches of `clips` consecutive clips each, the last of what is left; their tensors are views where they can.

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
        """The batch in page-locked memory, offsets included: a copy from elsewhere would make the host wait."""
        pinned: dict[str, Any] = {field.name: _pinned(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return Batch(**pinned)


def _pinned(value: Tensor | PackedLayout) -> Tensor | PackedLayout:
    if isinstance(value, PackedLayout):
        return PackedLayout(value.lengths, value.cu_seqlens.pin_memory())
    return value.pin_memory()


def _split(packed: Tensor, layouts: Sequence[PackedLayout]) -> tuple[Tensor, ...]:
    return packed.split([layout.total for layout in layouts])
