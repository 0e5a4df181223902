"""Workload of the benchmark of audio towers: log-mel spectrograms of clips of many durations, and operation counts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.harness.inputs import normal
from slap_fast.config.model import ModelConfig
from slap_fast.models.flops import forward_flops
from slap_fast.ops import log_mel
from slap_fast.ops.log_mel.patches import log_mel_patches
from slap_fast.ops.packed import PackedLayout

BACKWARD = 2  # products for each product of the forward pass


@dataclass(frozen=True)
class Workload:
    """Clips, and the dimensions of the towers that embed them; the same numbers at every call.

    Attributes:
        durations: of the clips, in seconds.
        model: configuration of slap-fast's model. The other transformers have its width, heads, layers and MLP width.
        dtype: float32, or bfloat16 by autocast over float32 weights.
        device: "cpu" or "cuda".
        bucket_tokens: bound on the tokens of a padded batch of clips of similar length.
    """

    durations: tuple[float, ...]
    model: ModelConfig
    dtype: torch.dtype
    device: str
    bucket_tokens: int

    def single_precision(self) -> Workload:
        return replace(self, dtype=torch.float32)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @property
    def seconds(self) -> float:
        return sum(self.durations)

    @cached_property
    def tokens(self) -> list[int]:
        """Audio tokens of each clip, 25 a second: patches of 16 frames of 10 ms and 16 of 64 mel bins."""
        return [self.model.num_tokens(samples) for samples in self._samples]

    @cached_property
    def checked(self) -> list[int]:
        """Numbers of the clips of the correctness check: the shortest, the longest and a middle one."""
        order = sorted(range(len(self.durations)), key=self.durations.__getitem__)
        return [order[0], order[-1], order[len(order) // 2]]

    def patches(self, clip: int) -> Tensor:
        """`[tokens, 256]` float32, of one clip; four to a column of 160 ms, columns in the order of time."""
        wave, offsets = self._waveform(clip)
        return log_mel_patches(
            wave,
            offsets,
            self.model.mel,
            patch_frames=self.model.audio.patch_frames,
            patch_mels=self.model.audio.patch_mels,
        ).to(self.device)

    def spectrogram(self, clip: int) -> Tensor:
        """`[frames, 64]` float32, of one clip."""
        wave, offsets = self._waveform(clip)
        return log_mel(wave, offsets, self.model.mel).to(self.device)

    def incoming(self, clips: Sequence[int], width: int) -> Tensor:
        """`[clips, width]`: gradients of embeddings, which also serve as embeddings of captions."""
        return torch.cat([normal(clip, 1, width, device=self.device) for clip in clips])

    @property
    def _samples(self) -> list[int]:
        return [round(seconds * self.model.mel.sample_rate) for seconds in self.durations]

    def _waveform(self, clip: int) -> tuple[Tensor, Tensor]:
        samples = self._samples[clip]
        layout = PackedLayout.from_lengths([samples], dtype=torch.int64)
        return 0.1 * normal(clip, samples, device="cpu"), layout.cu_seqlens


def batches_by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Positions, sorted by length and cut into batches whose padded size is at most `most`, or that hold one clip."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batches and (len(batches[-1]) + 1) * lengths[position] <= most:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def packed_flops(workload: Workload) -> float:
    """FLOPs of the products of slap-fast's tower and pooling, forward."""
    config, tokens = workload.model, workload.tokens
    tower = forward_flops(config, tokens, [1] * len(tokens), masked=0)["audio_encoder"]
    audio = config.audio
    return sum(tower) + pooling_flops(audio.width, audio.pooling_mlp_ratio * audio.width, sum(tokens), len(tokens))


def padded_flops(workload: Workload, batches: Sequence[Sequence[int]]) -> float:
    """FLOPs of the products of a ViT with a plain MLP and attention pooling, forward; padding is computed, too.

    Args:
        workload: dimensions, and the tokens of each clip.
        batches: numbers of the clips that are padded together.
    """
    audio, total = workload.model.audio, 0.0
    patch = audio.patch_frames * audio.patch_mels * audio.width
    layer = 4 * audio.width**2 + 2 * audio.width * audio.mlp_width
    for batch in batches:
        longest = max(workload.tokens[clip] for clip in batch)
        tokens = len(batch) * longest
        total += 2.0 * (patch + audio.layers * layer) * tokens
        total += 4.0 * audio.width * audio.layers * len(batch) * longest**2
        total += pooling_flops(audio.width, audio.mlp_width, tokens, len(batch))
    return total


def pooling_flops(width: int, mlp_width: int, tokens: int, clips: int) -> float:
    """FLOPs of attention pooling: keys and values of each token, output projection and MLP of each clip."""
    return 2.0 * 2 * width**2 * tokens + 2.0 * (width**2 + 2 * width * mlp_width) * clips
