"""Collation: packs the clips of a step into a batch and draws their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slap_fast.config.model import ModelConfig
from slap_fast.data.loading.augmentation import MaskSampler
from slap_fast.data.loading.batch import Batch
from slap_fast.ops.packed import PackedLayout


class LoadedClip(NamedTuple):
    """A clip ready for packing: clip number, `[samples]` float32 waveform, token ids of the caption."""

    clip: int
    waveform: Tensor
    input_ids: Sequence[int]


def collate(clips: Sequence[LoadedClip], model_config: ModelConfig, masks: MaskSampler, step: int) -> Batch:
    """Packs the clips of one rank in one step, in the given order, with their masks.

    Raises:
        ValueError: there is no clip, or a clip has no sample or no token.
    """
    if not clips:
        raise ValueError("a batch needs at least one clip")
    for clip in clips:
        if not len(clip.waveform) or not len(clip.input_ids):
            raise ValueError(
                f"clip {clip.clip} has {len(clip.waveform)} samples and {len(clip.input_ids)} caption tokens; "
                "it needs at least one of each"
            )
    lengths = [len(clip.waveform) for clip in clips]
    samples = PackedLayout.from_lengths(lengths, dtype=torch.int64)
    frames = PackedLayout.from_lengths([model_config.mel.num_frames(length) for length in lengths])
    tokens = PackedLayout.from_lengths([model_config.num_tokens(length) for length in lengths])
    text = PackedLayout.from_lengths([len(clip.input_ids) for clip in clips])
    drawn = [
        masks.draw(step, clip.clip, frames=n_frames, n_mels=model_config.mel.n_mels, tokens=n_tokens)
        for clip, n_frames, n_tokens in zip(clips, frames.lengths, tokens.lengths, strict=True)
    ]
    first_tokens = np.cumsum((0, *tokens.lengths[:-1]))
    masked_tokens = [mask.masked_tokens + first for mask, first in zip(drawn, first_tokens, strict=True)]
    return Batch(
        waveform=pack_waveforms([clip.waveform for clip in clips]),
        samples=samples,
        frames=frames,
        tokens=tokens,
        time_masked=torch.from_numpy(np.concatenate([mask.time_masked for mask in drawn])),
        mel_masked=torch.from_numpy(np.stack([mask.mel_masked for mask in drawn])),
        masked_tokens=torch.from_numpy(np.concatenate(masked_tokens)),
        masked=PackedLayout.from_lengths([len(mask.masked_tokens) for mask in drawn]),
        input_ids=torch.tensor([token for clip in clips for token in clip.input_ids], dtype=torch.int64),
        text=text,
        clip_ids=torch.tensor([clip.clip for clip in clips], dtype=torch.int64),
    )


def pack_waveforms(waveforms: Sequence[Tensor]) -> Tensor:
    """`[sum of lengths]` concatenated waveforms: a view if they are already contiguous in memory, else a copy.

    Args:
        waveforms: at least one contiguous 1-D tensor, all of one dtype.
    """
    first = waveforms[0]
    storage = first.untyped_storage().data_ptr()
    end = first.data_ptr()
    for waveform in waveforms:
        if waveform.data_ptr() != end or waveform.untyped_storage().data_ptr() != storage:
            return torch.cat(list(waveforms))
        end += waveform.numel() * waveform.element_size()
    return first.as_strided((sum(len(waveform) for waveform in waveforms),), (1,))
