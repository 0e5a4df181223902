"""A fake model with a known embedding space: the mean amplitude of a clip, and the number in a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from slap_fast.config.model import ModelConfig


class LoudnessModel:
    """Embeds loudness as an angle: a clip of amplitude 0.3 and a text with "0.3" have the same embedding."""

    def __init__(self) -> None:
        self.config = ModelConfig()
        self.batches: list[int] = []

    def encode_audio(self, audio: Sequence[np.ndarray], *, sampling_rate: float) -> Tensor:
        assert sampling_rate == self.config.mel.sample_rate
        self.batches.append(len(audio))
        return self._on_circle([float(np.abs(clip).mean()) for clip in audio])

    def encode_text(self, texts: list[str]) -> Tensor:
        return self._on_circle([float(re.findall(r"\d\.\d+", text)[0]) for text in texts])

    def require(self, part: str) -> None:
        """It has every part."""

    def caption(self, audio: Sequence[np.ndarray], *, sampling_rate: float, **options: float) -> list[str]:
        assert sampling_rate == self.config.mel.sample_rate
        return [f"loudness {np.abs(clip).mean():.2f}" for clip in audio]

    def similarity_over_time(self, audio: np.ndarray, text: str, *, sampling_rate: float) -> tuple[Tensor, Tensor]:
        columns = [audio[start : start + 1600] for start in range(0, len(audio), 1600)]
        times = 0.05 + 0.1 * torch.arange(len(columns))
        return times, self.encode_audio(columns, sampling_rate=sampling_rate) @ self.encode_text([text])[0]

    @staticmethod
    def _on_circle(values: list[float]) -> Tensor:
        angles = torch.tensor(values) * torch.pi / 2
        return torch.stack([angles.cos(), angles.sin()], 1)
