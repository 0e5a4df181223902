"""Log-mel reference: one clip and one frame at a time, with a dense DFT in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np

from slap_fast.ops.log_mel.config import MelConfig


def log_mel(clip: np.ndarray, config: MelConfig) -> np.ndarray:
    """`[S]` float or int16 samples to `[frames, n_mels]`."""
    return normalize(local_log_mel(clip, config), config)


def local_log_mel(clip: np.ndarray, config: MelConfig) -> np.ndarray:
    """`log_mel` up to the logarithm, without the steps over the whole clip."""
    samples = clip / 32768.0 if clip.dtype == np.int16 else clip.astype(np.float64)
    samples = samples * config.input_scale
    if config.preemphasis_scope == "clip" and config.preemphasis:  # 0 times NaN would be NaN
        samples = np.array([x - config.preemphasis * samples[i - 1] if i else x for i, x in enumerate(samples)])
    padded, before = _pad(samples, config)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(config.n_fft // 2 + 1), np.arange(config.win_length)) / config.n_fft)
    filters = mel_filters(config)
    frames = []
    for index in range(count_frames(len(clip), config)):
        start = before + config.first_sample + index * config.hop_length
        frame = padded[start : start + config.win_length]
        frame = np.concatenate([frame, np.zeros(config.win_length - len(frame))])
        frames.append(_log(_mel(frame, dft, filters, config), config))
    return np.array(frames).reshape(-1, config.n_mels)


def normalize(frames: np.ndarray, config: MelConfig) -> np.ndarray:
    """The steps after the logarithm, for the frames of one clip."""
    if len(frames) == 0:
        return frames
    if config.dynamic_range is not None:
        frames = np.maximum(frames, frames.max() - config.dynamic_range)
    if config.normalize_per_clip:
        deviation = frames.std(axis=0, ddof=1) if len(frames) > 1 else np.zeros(frames.shape[1])
        frames = (frames - frames.mean(axis=0)) / (deviation + 1e-5)
    return (frames - config.mean) / config.std


def count_frames(n_samples: int, config: MelConfig) -> int:
    """Number of frames, counted one by one."""
    if n_samples == 0:
        return 0
    frames = 0
    if config.padding == "kaldi":
        # One per hop whose middle is in the clip.
        while frames * config.hop_length + config.hop_length - config.hop_length // 2 <= n_samples:
            frames += 1
    else:
        span = config.n_fft if config.frame_span == "n_fft" else config.win_length
        padded = max(span, n_samples + 2 * _pad_length(config))
        while frames * config.hop_length + span <= padded:
            frames += 1
    return max(0, frames - 1) if config.drop_last_frame else frames


def _pad_length(config: MelConfig) -> int:
    if config.padding not in ("zeros", "reflect"):
        return 0
    if config.pad_length is not None:
        return config.pad_length
    return (config.n_fft if config.frame_span == "n_fft" else config.win_length) // 2


def _pad(samples: np.ndarray, config: MelConfig) -> tuple[np.ndarray, int]:
    """Samples with ample padding on both sides, and the length of the padding before them."""
    margin = _pad_length(config) + config.n_fft + config.hop_length
    if len(samples) == 0:
        return samples, 0
    modes = {"reflect": "reflect", "kaldi": "symmetric", "zeros": "constant", "none": "constant"}
    return np.pad(samples, margin, mode=modes[config.padding]), margin  # type: ignore[call-overload]


def window(config: MelConfig) -> np.ndarray:
    """`[win_length]`."""
    length = config.win_length
    if length == 1 or config.window == "rectangular":
        return np.ones(length)
    periodic = config.window.endswith("periodic")
    full = length + 1 if periodic else length
    values = np.hamming(full) if config.window.startswith("hamming") else np.hanning(full)
    return (values**0.85 if config.window == "povey" else values)[:length]


def _mel(frame: np.ndarray, dft: np.ndarray, filters: np.ndarray, config: MelConfig) -> np.ndarray:
    """`[win_length]` samples to `[n_mels]` filterbank energies."""
    if config.remove_dc_offset:
        frame = frame - frame.mean()
    if config.preemphasis_scope == "frame":
        frame = np.array([x - config.preemphasis * frame[max(i - 1, 0)] for i, x in enumerate(frame)])
    spectrum = np.abs(dft @ (frame * window(config))) ** 2 + config.power_guard
    return filters @ spectrum ** (config.power / 2)


def _log(mel: np.ndarray, config: MelConfig) -> np.ndarray:
    mel = np.maximum(mel, config.log_floor) + config.log_guard
    if config.log == "none":
        return mel
    if config.log == "natural":
        return np.log(mel)
    return np.log10(mel) * (1.0 if config.log == "log10" else 20.0 / config.power)


def mel_filters(config: MelConfig) -> np.ndarray:
    """`[n_mels, n_fft // 2 + 1]`, one weight at a time."""
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if config.mel_scale == "slaney" else (_htk_mel, _htk_hz)
    low = to_mel(config.f_min)
    high = to_mel(config.f_max if config.f_max is not None else config.sample_rate / 2)
    step = (high - low) / (config.n_mels + 1)
    filters = np.zeros((config.n_mels, config.n_fft // 2 + 1))
    for mel in range(config.n_mels):
        edges = [low + (mel + offset) * step for offset in range(3)]
        width = to_hz(edges[2]) - to_hz(edges[0])
        if config.mel_scale != "kaldi":
            edges = [to_hz(edge) for edge in edges]
        left, center, right = edges
        for bin_ in range(filters.shape[1]):
            position = bin_ * config.sample_rate / config.n_fft
            if config.mel_scale == "kaldi":
                position = to_mel(position)
            if left < position <= center:
                filters[mel, bin_] = (position - left) / (center - left)
            elif center < position < right:
                filters[mel, bin_] = (right - position) / (right - center)
        if config.mel_norm == "slaney":
            filters[mel] /= width / 2
    return filters


def _htk_mel(frequency: float) -> float:
    return 1127.0 * math.log(1.0 + frequency / 700.0)


def _htk_hz(mel: float) -> float:
    return 700.0 * (math.exp(mel / 1127.0) - 1.0)


def _slaney_mel(frequency: float) -> float:
    if frequency <= 1000.0:
        return frequency * 3 / 200
    return 15.0 + 27.0 * math.log(frequency / 1000.0) / math.log(6.4)


def _slaney_hz(mel: float) -> float:
    return mel * 200 / 3 if mel <= 15.0 else 1000.0 * math.exp((mel - 15.0) * math.log(6.4) / 27.0)
