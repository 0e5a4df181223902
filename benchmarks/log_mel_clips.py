"""Clips of the log-mel benchmark, the same for every peer, and the positions of their frames."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from benchmarks.harness.inputs import normal
from slap_fast.ops import MelConfig


@dataclass(frozen=True)
class Clips:
    """Noise of given lengths, a convention, and a gradient of the frames.

    Attributes:
        samples: length of each clip.
        config: the convention of all peers.
        device: of the waveform.
    """

    samples: tuple[int, ...]
    config: MelConfig
    device: str

    @classmethod
    def of_seconds(cls, seconds: tuple[float, ...], config: MelConfig, device: str) -> Clips:
        return cls(tuple(round(duration * config.sample_rate) for duration in seconds), config, device)

    @property
    def frames(self) -> list[int]:
        return [self.config.num_frames(count) for count in self.samples]

    @property
    def seconds(self) -> float:
        return sum(self.samples) / self.config.sample_rate

    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *accumulate(self.samples)], device=self.device)

    def waveform(self) -> Tensor:
        """`[S]` float32."""
        return _noise(sum(self.samples), 0.1, 0, self.device)

    def gradient(self) -> Tensor:
        """`[F, n_mels]` float32 gradient of the frames."""
        bins = self.config.n_mels
        return _noise(sum(self.frames) * bins, 1.0, 1, self.device).view(-1, bins)

    def padded_waveform(self) -> Tensor:
        """`[N, longest]`; a view of `waveform` if all clips have one length."""
        return self._padded(self.waveform(), self.samples)

    def padded_gradient(self) -> Tensor:
        """`[N, most frames, n_mels]`."""
        return self._padded(self.gradient(), self.frames)

    def packed(self, padded: Tensor, counts: list[int] | tuple[int, ...]) -> Tensor:
        """`[N, longest, ...]` to `[total, ...]`: the first `counts[i]` rows of each item."""
        return torch.cat([item[:count] for item, count in zip(padded, counts, strict=True)])

    def split(self) -> list[Tensor]:
        return list(self.waveform().split(list(self.samples)))

    def _padded(self, packed: Tensor, counts: list[int] | tuple[int, ...]) -> Tensor:
        if len(set(counts)) == 1:
            return packed.view(len(counts), counts[0], *packed.shape[1:])
        return torch.nn.utils.rnn.pad_sequence(list(packed.split(list(counts))), batch_first=True)

    def chunks(self, frames_per_chunk: int) -> list[tuple[slice, slice]]:
        """Samples and frames of chunks of the clips, each of at most `frames_per_chunk` frames.

        Raises:
            ValueError: a frame would reach beyond its clip.
        """
        config, found, first_frame = self.config, [], 0
        for (begin, end), count in zip(pairwise([0, *accumulate(self.samples)]), self.frames, strict=True):
            if config.padding != "none" or config.frame_span != "win_length" or end - begin < config.win_length:
                raise ValueError(f"frames of a clip of {end - begin} samples reach beyond its ends in this convention")
            for first in range(0, count, frames_per_chunk):
                last = min(count, first + frames_per_chunk)
                samples = slice(
                    begin + first * config.hop_length, begin + (last - 1) * config.hop_length + config.win_length
                )
                found.append((samples, slice(first_frame + first, first_frame + last)))
            first_frame += count
        return found


@functools.lru_cache(maxsize=2)
def _noise(count: int, deviation: float, seed: int, device: str) -> Tensor:
    """Cached for the peers of a case: an hour of samples is 230 MB."""
    return normal(seed, count, device=device).mul_(deviation)


def mixed_seconds(clips: int, shortest: float = 1.0, longest: float = 30.0) -> tuple[float, ...]:
    """Quantiles of log-uniform durations."""
    ratio = math.log(longest / shortest)
    return tuple(shortest * math.exp((index + 0.5) / clips * ratio) for index in range(clips))
