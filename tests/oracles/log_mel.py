"""Log-mel by definition: one clip, one frame at a time, a dense DFT in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np

from slap_fast.ops.mel_config import MelConfig


def _kaldi_mel(frequency: float) -> float:
    return 1127.0 * math.log(1.0 + frequency / 700.0)


def mel_filters(config: MelConfig) -> np.ndarray:
    """`[n_mels, n_fft // 2 + 1]`."""
    low = _kaldi_mel(config.f_min)
    high = _kaldi_mel(config.f_max if config.f_max is not None else config.sample_rate / 2)
    step = (high - low) / (config.n_mels + 1)
    filters = np.zeros((config.n_mels, config.n_fft // 2 + 1))
    for mel in range(config.n_mels):
        left, center, right = (low + (mel + offset) * step for offset in range(3))
        for bin_ in range(filters.shape[1]):
            position = _kaldi_mel(bin_ * config.sample_rate / config.n_fft)
            if left < position <= center:
                filters[mel, bin_] = (position - left) / (center - left)
            elif center < position < right:
                filters[mel, bin_] = (right - position) / (right - center)
    return filters


def log_mel(clip: np.ndarray, config: MelConfig) -> np.ndarray:
    """`[S]` samples to `[frames, n_mels]`."""
    if len(clip) == 0:
        return np.zeros((0, config.n_mels))
    clip = clip.astype(np.float64)
    if len(clip) < config.win_length:
        clip = np.concatenate([clip, np.zeros(config.win_length - len(clip))])
    denominator = config.win_length - (config.window == "hann_symmetric")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.win_length) / denominator)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(config.n_fft // 2 + 1), np.arange(config.win_length)) / config.n_fft)
    filters = mel_filters(config)
    frames = []
    for start in range(0, len(clip) - config.win_length + 1, config.hop_length):
        frame = clip[start : start + config.win_length]
        if config.remove_dc_offset:
            frame = frame - frame.mean()
        emphasized = frame.copy()
        for i in range(config.win_length):
            emphasized[i] -= config.preemphasis * frame[max(i - 1, 0)]
        magnitude = np.abs(dft @ (emphasized * window)) ** config.power
        frames.append((np.log(np.maximum(filters @ magnitude, config.log_floor)) - config.mean) / config.std)
    return np.stack(frames)
