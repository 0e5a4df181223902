"""Log-mel patches of one clip in operations that ONNX has: frames by index, the Fourier transform as a product."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.config.model import ModelConfig
from slap_fast.ops.log_mel import tables

_STD_GUARD = 1e-5  # of `MelConfig.normalize_per_clip`


class PortableFrontend(nn.Module):
    """`log_mel_patches` of one clip: `[S]` float32 samples to `[T, patch_frames * patch_mels]`."""

    fourier: Tensor
    filters: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        mel = config.mel
        samples, bins = torch.arange(mel.win_length, dtype=torch.float64), torch.arange(mel.n_fft // 2 + 1)
        angle = -2.0 * math.pi / mel.n_fft * ((samples[:, None] * bins) % mel.n_fft)
        window = torch.from_numpy(tables.window(mel).copy())[:, None]
        fourier = torch.cat([window * angle.cos(), window * angle.sin()], dim=1)  # [win_length, 2 * bins]
        filters = torch.from_numpy(tables.mel_filters(mel).copy())
        self.register_buffer("fourier", fourier.float(), persistent=False)
        self.register_buffer("filters", filters.float().t().contiguous(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        audio, mel = self.config.audio, self.config.mel
        count = mel.num_frames(waveform.shape[0])
        # All sizes are multiples of the number of columns, as others would restrict the lengths that torch.export
        # accepts. So the last column has frames beyond the end, which are replaced.
        columns = 1 + (count - 1) // audio.patch_frames
        index = torch.arange(columns * audio.patch_frames, device=waveform.device)
        inside = (index < count)[:, None]
        frames = self._logarithm(self._energies(self._frames(waveform, index)))  # [F, n_mels]
        frames = torch.where(inside, self._normalized(frames, inside), mel.normalized_floor)
        # The patches by index too: a dimension of the columns alone may be 1, which a reshape would exclude.
        rows = self.config.tokens_per_column
        token = torch.arange(columns * rows, device=waveform.device)[:, None, None]
        frame = token // rows * audio.patch_frames + torch.arange(audio.patch_frames, device=waveform.device)[:, None]
        bin_ = token % rows * audio.patch_mels + torch.arange(audio.patch_mels, device=waveform.device)
        return frames.flatten()[(frame * mel.n_mels + bin_).flatten(1)]  # [T, patch_frames * patch_mels]

    def _frames(self, waveform: Tensor, index: Tensor) -> Tensor:
        """`[F, win_length]` samples, with the padding of the convention."""
        mel = self.config.mel
        length = waveform.shape[0]
        samples = waveform * mel.input_scale
        if mel.preemphasis and mel.preemphasis_scope == "clip":
            samples = samples - mel.preemphasis * F.pad(samples, (1, 0))[:-1]
        starts = mel.first_sample + mel.hop_length * index
        position = starts[:, None] + torch.arange(mel.win_length, device=waveform.device)
        if mel.padding in ("none", "zeros"):
            inside = (position >= 0) & (position < length)
            return torch.where(inside, samples[position.clamp(0, length - 1)], 0.0)
        repeats_edge = mel.padding == "kaldi"
        # As a tensor: ONNX has no remainder of a symbolic maximum.
        period = torch.full((), 2 * length if repeats_edge else 2 * length - 2, device=waveform.device).clamp_min(1)
        phase = torch.remainder(position, period)
        return samples[torch.where(phase < length, phase, period - int(repeats_edge) - phase)]

    def _energies(self, frames: Tensor) -> Tensor:
        mel = self.config.mel
        if mel.remove_dc_offset:
            frames = frames - frames.mean(dim=1, keepdim=True)
        if mel.preemphasis and mel.preemphasis_scope == "frame":
            frames = frames - mel.preemphasis * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        real, imaginary = (frames @ self.fourier).chunk(2, dim=1)
        energy = real.square() + imaginary.square() + mel.power_guard
        return (energy.sqrt() if mel.power == 1.0 else energy) @ self.filters

    def _logarithm(self, energies: Tensor) -> Tensor:
        mel = self.config.mel
        value = energies.clamp_min(mel.log_floor) + mel.log_guard
        return value if mel.log == "none" else value.log() * mel.log_scale

    def _normalized(self, value: Tensor, inside: Tensor) -> Tensor:
        mel = self.config.mel
        if mel.dynamic_range is not None:
            value = torch.maximum(value, torch.where(inside, value, -torch.inf).max() - mel.dynamic_range)
        if mel.normalize_per_clip:
            count = inside.sum()
            value = value - value[:1]  # silence has a mean of exactly 0 then, whose rounding error would be amplified
            centered = torch.where(inside, value - torch.where(inside, value, 0.0).sum(dim=0) / count, 0.0)
            deviation = (centered.square().sum(dim=0) / (count - 1).clamp_min(1)).sqrt()  # 0 for a single frame
            value = centered / (deviation + _STD_GUARD)
        return (value - mel.mean) / mel.std
