"""Presets of `MelConfig`: log-mel conventions of other libraries, as differences from the defaults, which are SLAP's.

slap           SLAP: 64 bins, Hann window, Kaldi's filterbank (arXiv 2601.12594 and AST)
kaldi          kaldi-native-fbank's defaults on samples in the range of 16-bit integers, without dither
ast            transformers.ASTFeatureExtractor
whisper        transformers.WhisperFeatureExtractor; whisper-v3 has 128 bins
clap           transformers.ClapFeatureExtractor with `truncation="rand_trunc"` (the unfused checkpoints)
clap-fused     the same with `truncation="fusion"`
librosa        librosa.feature.melspectrogram, then librosa.power_to_db
torchaudio     torchaudio.transforms.MelSpectrogram, then AmplitudeToDB
nemo           NeMo's AudioToMelSpectrogramPreprocessor as Conformer and Parakeet use it, without dither
"""

from __future__ import annotations

from typing import Any

_KALDI: dict[str, Any] = {"window": "povey", "input_scale": 32768.0, "n_mels": 80}

# Frames without conditioning, centered as in torch.stft and librosa.
_STFT: dict[str, Any] = {
    "window": "hann_periodic",
    "frame_span": "n_fft",
    "padding": "reflect",
    "remove_dc_offset": False,
    "preemphasis": 0.0,
    "f_min": 0.0,
    "log_floor": 1e-10,
}

_WHISPER: dict[str, Any] = {
    **_STFT,
    "n_fft": 400,
    "drop_last_frame": True,
    "n_mels": 80,
    "f_max": 8000.0,
    "mel_scale": "slaney",
    "mel_norm": "slaney",
    "log": "log10",
    "dynamic_range": 8.0,
    "mean": -4.0,
    "std": 4.0,
}

_CLAP: dict[str, Any] = {
    **_STFT,
    "sample_rate": 48_000,
    "n_fft": 1024,
    "win_length": 1024,
    "hop_length": 480,
    "n_mels": 64,
    "f_max": 14_000.0,
    "mel_scale": "slaney",
    "mel_norm": "slaney",
    "log": "db",
}

PRESETS: dict[str, dict[str, Any]] = {
    "slap": {},
    "kaldi": _KALDI,
    "ast": {"n_mels": 128, "mean": -4.2677393, "std": 2 * 4.5689974},
    "whisper": _WHISPER,
    "whisper-v3": {**_WHISPER, "n_mels": 128},
    "clap": _CLAP,
    "clap-fused": {**_CLAP, "mel_scale": "htk", "mel_norm": "none"},
    "librosa": {
        **_STFT,
        "sample_rate": 22_050,
        "n_fft": 2048,
        "win_length": 2048,
        "hop_length": 512,
        "padding": "zeros",
        "n_mels": 128,
        "mel_scale": "slaney",
        "mel_norm": "slaney",
        "log": "db",
        "dynamic_range": 80.0,
    },
    "torchaudio": {**_STFT, "n_fft": 400, "hop_length": 200, "n_mels": 128, "mel_scale": "htk", "log": "db"},
    "nemo": {
        **_STFT,
        "window": "hann_symmetric",
        "padding": "zeros",
        "drop_last_frame": True,
        "preemphasis": 0.97,
        "preemphasis_scope": "clip",
        "n_mels": 80,
        "mel_scale": "slaney",
        "mel_norm": "slaney",
        "log_floor": 0.0,
        "log_guard": 2.0**-24,
        "normalize_per_clip": True,
    },
}
