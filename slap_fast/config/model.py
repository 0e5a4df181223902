"""Model configuration: the dimensions of SLAP.

The defaults are the paper's model; `recipes/paper.yaml` names the source of each value.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slap_fast.ops.log_mel.config import MelConfig

OBJECTIVES = ("contrastive", "self_distillation", "caption")
"""The objectives of SLAP. Each one that is trained adds its own parts to the model."""

# Upper bounds, against a damaged or hostile file: far above any useful model, and low enough that building one neither
# hangs nor exhausts memory before its weights are checked.
_MAXIMUM = {"layers": 1024, "global_every": 1024, "max_length": 1 << 16, "pooling_mlp_ratio": 64}
_DEFAULT_MAXIMUM = 1 << 24
_LARGEST = 2.0**127  # finite in float32
_MEL_MAXIMUM = {
    "sample_rate": 1 << 24,
    "n_fft": 1 << 16,
    "win_length": 1 << 16,
    "hop_length": 1 << 20,
    "n_mels": 2048,
    "pad_length": 1 << 20,
}


@dataclass(frozen=True)
class AudioEncoderConfig:
    """The vision transformer over log-mel patches."""

    patch_frames: int = 16
    patch_mels: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    window_columns: int = 24  # attention window of a local layer in patch columns, half of them on each side
    global_every: int = 3  # one layer in this many is global, the others are local; 1 makes all layers global
    rope_theta_time: float = 10_000.0
    rope_theta_frequency: float = 100.0
    norm_eps: float = 1e-6
    pooling_heads: int = 12
    pooling_mlp_ratio: int = 4

    def __post_init__(self) -> None:
        _check_numbers(self, "audio")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"audio.width ({self.width}) must split into audio.heads ({self.heads}) heads of a multiple of 4 "
                "channels: the axial rotary embedding gives half of them to time and half to frequency"
            )
        if self.width % self.pooling_heads:
            raise ValueError(
                f"audio.width ({self.width}) is not a multiple of audio.pooling_heads ({self.pooling_heads})"
            )


@dataclass(frozen=True)
class TextEncoderConfig:
    """The Hugging Face text tower: `pretrained` is a hub name or folder; None trains a ModernBERT from scratch."""

    pretrained: str | None = "answerdotai/ModernBERT-base"
    vocab_size: int = 50_368  # replaced by the tokenizer's when trained from scratch
    width: int = 768
    layers: int = 22
    heads: int = 12
    mlp_width: int = 1152
    max_length: int = 128
    pooling_heads: int = 12
    pooling_mlp_ratio: int = 4

    def __post_init__(self) -> None:
        _check_numbers(self, "text")
        if self.max_length < 3:
            raise ValueError(
                f"text.max_length is {self.max_length}; a start token, a word and an end token need at least 3"
            )


@dataclass(frozen=True)
class CaptionDecoderConfig:
    """The causal caption decoder, with cross-attention to the audio features before pooling."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    mlp_width: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_numbers(self, "caption")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"caption.width ({self.width}) must split into caption.heads ({self.heads}) heads of an even number of "
                "channels, which the rotary embedding turns in pairs"
            )


@dataclass(frozen=True)
class PrototypeHeadConfig:
    """The MLP and prototypes for self-distillation (DINOv2)."""

    prototypes: int = 32_768
    hidden: int = 2048
    bottleneck: int = 256

    def __post_init__(self) -> None:
        _check_numbers(self, "prototype")


@dataclass(frozen=True)
class ModelConfig:
    """All dimensions of a SLAP model."""

    mel: MelConfig = field(default_factory=MelConfig)
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    caption: CaptionDecoderConfig = field(default_factory=CaptionDecoderConfig)
    prototype: PrototypeHeadConfig = field(default_factory=PrototypeHeadConfig)
    logit_scale_init: float = math.log(1 / 0.07)  # logarithm of the multiplier of cosines
    logit_scale_max: float = math.log(100.0)  # the same, its upper bound
    max_duration: float = 30.0  # seconds of the longest clips in training; longer audio is embedded in windows

    def __post_init__(self) -> None:
        for name in ("logit_scale_init", "logit_scale_max", "max_duration"):
            _check_type(f"model.{name}", getattr(self, name), float)
        self._check_max_duration()
        for name, maximum in _MEL_MAXIMUM.items():
            value = getattr(self.mel, name)
            if value is not None and value > maximum:
                raise ValueError(f"mel.{name} is {value}; it must be at most {maximum}")
        if self.mel.n_mels % self.audio.patch_mels:
            raise ValueError(
                f"mel.n_mels ({self.mel.n_mels}) is not a multiple of audio.patch_mels ({self.audio.patch_mels})"
            )
        if self.audio.width % self.text.pooling_heads:
            raise ValueError(
                f"audio.width ({self.audio.width}) is not a multiple of text.pooling_heads ({self.text.pooling_heads})"
            )

    def _check_max_duration(self) -> None:
        if self.max_duration < self.column_seconds:
            raise ValueError(
                f"model.max_duration is {self.max_duration!r}; it must be at least one column of patches "
                f"({self.column_seconds:g} s)"
            )

    @property
    def architecture(self) -> ModelConfig:
        """These dimensions alone, also of a subclass with settings that a saved model does not have."""
        if type(self) is ModelConfig:
            return self
        return ModelConfig(**{part.name: getattr(self, part.name) for part in dataclasses.fields(ModelConfig)})

    @property
    def tokens_per_column(self) -> int:
        """Tokens of one patch column, which share one position in time."""
        return self.mel.n_mels // self.audio.patch_mels

    @property
    def column_samples(self) -> int:
        """Samples from one column of patches to the next."""
        return self.audio.patch_frames * self.mel.hop_length

    @property
    def column_seconds(self) -> float:
        """Seconds from one column of patches to the next."""
        return self.column_samples / self.mel.sample_rate

    def num_columns(self, n_samples: int) -> int:
        """Columns of patches of a clip of `n_samples`; a partial one at the end counts as one."""
        return -(-self.mel.num_frames(n_samples) // self.audio.patch_frames)

    def num_tokens(self, n_samples: int) -> int:
        """Encoder tokens of a clip of `n_samples`; a partial patch at the end counts as one."""
        return self.num_columns(n_samples) * self.tokens_per_column


def model_config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The inverse of `dataclasses.asdict`.

    Raises:
        ValueError: a section that is not a mapping, an unknown key, or a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(ModelConfig)
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        arguments[name] = _build(sections[name], name, value) if name in sections else value
    return _build(ModelConfig, "model", arguments)


def _check_numbers(section: Any, name: str) -> None:
    """Check the type of each field of a section, and that integers are in [1, maximum] and floats are positive.

    Args:
        name: of the section, for the message.

    Raises:
        ValueError: names the field and its value.
    """
    hints = typing.get_type_hints(type(section))
    for part in dataclasses.fields(section):
        where, value, hint = f"{name}.{part.name}", getattr(section, part.name), hints[part.name]
        _check_type(where, value, hint)
        maximum = _MAXIMUM.get(part.name, _DEFAULT_MAXIMUM)
        if hint is int and not 1 <= value <= maximum:
            raise ValueError(f"{where} is {value!r}; it must be a whole number from 1 to {maximum}")
        if hint is float and not value > 0:
            raise ValueError(f"{where} is {value!r}; it must be above 0")


def _check_type(where: str, value: Any, hint: Any) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return  # checked by the section's own `__post_init__`
    if value is None and type(None) in arguments:
        return
    expected = next((argument for argument in arguments if argument is not type(None)), hint)
    finite = type(value) in (int, float) and abs(value) <= _LARGEST
    if not (finite if expected is float else type(value) is expected):
        words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
        raise ValueError(f"{where} is {value!r}; it must be {words[expected]}")


def _build(section: Any, name: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"the model configuration has {name} = {values!r}, which is not a mapping of keys to values")
    hints = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"the model configuration has an unknown key {name}.{key}; known: {sorted(hints)}")
        if not dataclasses.is_dataclass(hints[key]):
            _check_type(f"{name}.{key}", value, hints[key])
    return section(**values)
