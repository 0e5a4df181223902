"""The model, described by its dimensions. Defaults are the paper's model; each value names its origin."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slap_fast.ops.mel_config import MelConfig


@dataclass(frozen=True)
class AudioEncoderConfig:
    """The ViT over log-mel patches."""

    patch_frames: int = 16  # paper
    patch_mels: int = 16  # paper
    width: int = 768  # paper
    layers: int = 12  # paper
    heads: int = 12  # paper
    mlp_width: int = 3072  # paper
    window_columns: int = 24  # paper says 24 frames; ours: patch columns, half of them on each side
    global_every: int = 3  # paper: two local layers, then a global one; 1 makes every layer global
    rope_theta_time: float = 10_000.0  # ours
    rope_theta_frequency: float = 100.0  # ours
    norm_eps: float = 1e-6  # ours
    pooling_heads: int = 12  # big_vision
    pooling_mlp_ratio: int = 4  # big_vision

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"audio.width ({self.width}) must split into audio.heads ({self.heads}) heads of a multiple of 4 "
                "channels: the axial rotary embedding gives half of them to time and half to frequency"
            )
        if self.width % self.pooling_heads:
            raise ValueError(
                f"audio.width ({self.width}) is not a multiple of audio.pooling_heads ({self.pooling_heads})"
            )
        if self.global_every < 1:
            raise ValueError(f"audio.global_every is {self.global_every}; it must be at least 1")


@dataclass(frozen=True)
class TextEncoderConfig:
    """The Hugging Face text tower: `pretrained` by hub name or folder, else a ModernBERT from scratch."""

    pretrained: str | None = "answerdotai/ModernBERT-base"  # paper
    vocab_size: int = 50_368  # ModernBERT-base; replaced by the tokenizer's when trained from scratch
    width: int = 768  # paper
    layers: int = 22  # paper
    heads: int = 12  # paper
    mlp_width: int = 1152  # ModernBERT-base
    max_length: int = 128  # ours
    pooling_heads: int = 12  # big_vision
    pooling_mlp_ratio: int = 4  # big_vision


@dataclass(frozen=True)
class CaptionDecoderConfig:
    """The causal decoder that reads the audio features from before pooling."""

    width: int = 512  # paper
    layers: int = 8  # paper
    heads: int = 8  # paper
    mlp_width: int = 2048  # ours: four times the width
    rope_theta: float = 10_000.0  # ours
    norm_eps: float = 1e-6  # ours


@dataclass(frozen=True)
class PrototypeHeadConfig:
    """The MLP from a patch's features to its scores over prototypes (DINOv2)."""

    prototypes: int = 32_768  # DINOv2 / TIPS
    hidden: int = 2048  # DINOv2
    bottleneck: int = 256  # DINOv2


@dataclass(frozen=True)
class ModelConfig:
    mel: MelConfig = field(default_factory=MelConfig)
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    caption: CaptionDecoderConfig = field(default_factory=CaptionDecoderConfig)
    prototype: PrototypeHeadConfig = field(default_factory=PrototypeHeadConfig)
    logit_scale_init: float = math.log(1 / 0.07)  # open_clip
    logit_scale_max: float = math.log(100.0)  # open_clip

    def __post_init__(self) -> None:
        if self.mel.n_mels % self.audio.patch_mels:
            raise ValueError(
                f"mel.n_mels ({self.mel.n_mels}) is not a multiple of audio.patch_mels ({self.audio.patch_mels})"
            )

    @property
    def tokens_per_column(self) -> int:
        """Tokens that share one step in time."""
        return self.mel.n_mels // self.audio.patch_mels

    def num_tokens(self, n_samples: int) -> int:
        """Encoder tokens of a clip of `n_samples`; the last partial patch counts whole."""
        columns = -(-self.mel.num_frames(n_samples) // self.audio.patch_frames)
        return columns * self.tokens_per_column


def model_config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict`.

    Raises:
        ValueError: a key that no field has, or a value that its section refuses.
    """
    sections = {
        "mel": MelConfig,
        "audio": AudioEncoderConfig,
        "text": TextEncoderConfig,
        "caption": CaptionDecoderConfig,
        "prototype": PrototypeHeadConfig,
    }
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        arguments[name] = _build(sections[name], name, value) if name in sections else value
    return _build(ModelConfig, "model", arguments)


def _build(section: Any, name: str, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(section)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"the model configuration has an unknown key {name}.{unknown[0]}; known: {sorted(known)}")
    return section(**values)
