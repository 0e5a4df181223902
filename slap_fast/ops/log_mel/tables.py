"""Window and mel filters of a log-mel convention, in float64 NumPy."""

from __future__ import annotations

import functools
import math

import numpy as np

from slap_fast.ops.log_mel.config import MelConfig

# Slaney's Auditory Toolbox: 200/3 Hz a mel up to 1 kHz (15 mel), from there 27 mel for each factor of 6.4.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_KNEE_HZ = 1000.0
_SLANEY_KNEE_MEL = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = math.log(6.4) / 27.0


@functools.lru_cache(maxsize=64)
def window(config: MelConfig) -> np.ndarray:
    """`[win_length]` float64, read-only; a window of one sample is 1."""
    shape, _, symmetry = config.window.partition("_")
    length = config.win_length
    intervals = length if symmetry == "periodic" else length - 1
    if shape == "rectangular" or length == 1:
        values = np.ones(length)
    else:
        cosine = np.cos(2.0 * np.pi * np.arange(length) / intervals)
        values = 0.54 - 0.46 * cosine if shape == "hamming" else 0.5 - 0.5 * cosine
        if shape == "povey":
            values = values**0.85
    values.flags.writeable = False
    return values


@functools.lru_cache(maxsize=64)
def mel_filters(config: MelConfig) -> np.ndarray:
    """`[n_mels, n_fft // 2 + 1]` float64 triangles, read-only; a filter between two bins is all zeros."""
    slaney = config.mel_scale == "slaney"
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if slaney else (_htk_mel, _htk_hz)
    f_max = config.sample_rate / 2 if config.f_max is None else config.f_max
    ends = to_mel(np.array([config.f_min, f_max], dtype=np.float64))
    mels = ends[0] + (ends[1] - ends[0]) * np.arange(config.n_mels + 2) / (config.n_mels + 1)  # [n_mels + 2]
    edges_hz = to_hz(mels)
    bins_hz = np.arange(config.n_fft // 2 + 1) * (config.sample_rate / config.n_fft)
    edges, bins = (mels, to_mel(bins_hz)) if config.mel_scale == "kaldi" else (edges_hz, bins_hz)

    left, center, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - left) / (center - left)  # [n_mels, n_fft // 2 + 1]
    falling = (right - bins) / (right - center)
    filters = np.maximum(np.minimum(rising, falling), 0.0)
    if config.mel_norm == "slaney":
        filters *= 2.0 / (edges_hz[2:] - edges_hz[:-2])[:, None]
    filters.flags.writeable = False
    return filters


def _htk_mel(hz: np.ndarray) -> np.ndarray:
    return 1127.0 * np.log1p(hz / 700.0)


def _htk_hz(mel: np.ndarray) -> np.ndarray:
    return 700.0 * np.expm1(mel / 1127.0)


def _slaney_mel(hz: np.ndarray) -> np.ndarray:
    octaves = np.log(np.maximum(hz, _SLANEY_KNEE_HZ) / _SLANEY_KNEE_HZ)
    return np.minimum(hz, _SLANEY_KNEE_HZ) / _SLANEY_HZ_PER_MEL + octaves / _SLANEY_LOG_STEP


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    above = np.maximum(mel - _SLANEY_KNEE_MEL, 0.0)
    return np.minimum(mel, _SLANEY_KNEE_MEL) * _SLANEY_HZ_PER_MEL * np.exp(above * _SLANEY_LOG_STEP)
