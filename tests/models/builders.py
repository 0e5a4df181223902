"""Small model configuration and random clips for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.config.model import (
    AudioEncoderConfig,
    CaptionDecoderConfig,
    ModelConfig,
    PrototypeHeadConfig,
    TextEncoderConfig,
)
from slap_fast.ops.packed import PackedLayout

TINY = ModelConfig(
    audio=AudioEncoderConfig(width=32, layers=3, heads=2, mlp_width=48, window_columns=4, pooling_heads=2),
    text=TextEncoderConfig(
        pretrained=None, vocab_size=300, width=32, layers=3, heads=2, mlp_width=48, max_length=24, pooling_heads=2
    ),
    caption=CaptionDecoderConfig(width=32, layers=2, heads=2, mlp_width=48),
    prototype=PrototypeHeadConfig(prototypes=24, hidden=40, bottleneck=16),
)


def random_clips(seconds: list[float], *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(int(length * 16_000), generator=generator) - 0.5 for length in seconds]


def audio_layouts(clips: list[Tensor], config: ModelConfig = TINY) -> tuple[PackedLayout, PackedLayout, PackedLayout]:
    """Layouts of the samples, frames and tokens of clips."""
    lengths = [len(clip) for clip in clips]
    return (
        PackedLayout.from_lengths(lengths, dtype=torch.int64),
        PackedLayout.from_lengths([config.mel.num_frames(length) for length in lengths]),
        PackedLayout.from_lengths([config.num_tokens(length) for length in lengths]),
    )
