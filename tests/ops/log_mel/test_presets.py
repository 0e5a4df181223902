"""Each preset against the library that it is named after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import kaldi_native_fbank
import librosa
import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, ParakeetFeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.presets import PRESETS
from slap_fast.synthetic import synthetic_clip
from tests.oracles import torchaudio as recorded

TOLERANCE = 1e-4  # of the log value, in the preset's own unit


def slap_origin(waveform: np.ndarray) -> np.ndarray:
    filters = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=64,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16_000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return spectrogram(
        waveform,
        window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T


def kaldi_origin(waveform: np.ndarray, snip_edges: bool = True) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.snip_edges = snip_edges
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16_000, (waveform * 32768).astype(np.float32))
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def ast_origin(waveform: np.ndarray) -> np.ndarray:
    frames = MelConfig.preset("ast").num_frames(len(waveform))
    extractor = ASTFeatureExtractor(max_length=frames)
    return extractor(waveform.astype(np.float32), sampling_rate=16_000)["input_values"][0]


def whisper_origin(waveform: np.ndarray, n_mels: int = 80) -> np.ndarray:
    # Its NumPy path computes in float64, and agrees with its PyTorch path to 1e-5.
    return WhisperFeatureExtractor(feature_size=n_mels)._np_extract_fbank_features(waveform[None], "cpu")[0].T


def whisper_v3_origin(waveform: np.ndarray) -> np.ndarray:
    return whisper_origin(waveform, 128)


def clap_origin(waveform: np.ndarray) -> np.ndarray:
    # A clip of exactly the longest duration is neither repeated nor cropped.
    extractor = ClapFeatureExtractor(truncation="rand_trunc")
    return extractor._get_input_mel(waveform, len(waveform), "rand_trunc", "repeatpad")[0][0]


def clap_fused_origin(waveform: np.ndarray) -> np.ndarray:
    extractor = ClapFeatureExtractor(truncation="fusion")
    return extractor._get_input_mel(waveform, len(waveform), "fusion", "repeatpad")[0][0]


def librosa_origin(waveform: np.ndarray) -> np.ndarray:
    return librosa.power_to_db(librosa.feature.melspectrogram(y=waveform, sr=22_050)).T


def torchaudio_origin(waveform: np.ndarray) -> np.ndarray:
    """MelSpectrogram() and AmplitudeToDB() as their documentation defines them."""
    spectrum = torch.stft(
        torch.from_numpy(waveform), 400, 200, window=torch.hann_window(400, dtype=torch.float64), return_complex=True
    )
    power = spectrum.abs().square()  # [201, frames]
    mels = torch.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    slopes = edges[None, :] - torch.linspace(0, 8000, 201, dtype=torch.float64)[:, None]  # [201, 130]
    falling, rising = slopes[:, 2:] / edges.diff()[1:], -slopes[:, :-2] / edges.diff()[:-1]
    filters = torch.minimum(falling, rising).clamp_min(0)
    return (10 * (power.T @ filters).clamp_min(1e-10).log10()).numpy()


def nemo_origin(waveform: np.ndarray) -> np.ndarray:
    extracted = ParakeetFeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="pt")
    return extracted.input_features[0][extracted.attention_mask[0]].numpy()


ORIGINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "slap": slap_origin,
    "kaldi": kaldi_origin,
    "ast": ast_origin,
    "whisper": whisper_origin,
    "whisper-v3": whisper_v3_origin,
    "clap": clap_origin,
    "clap-fused": clap_fused_origin,
    "librosa": librosa_origin,
    "torchaudio": torchaudio_origin,
    "nemo": nemo_origin,
}


def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, 24_321)


def scene() -> np.ndarray:
    """A rendered scene, digital silence, a chirp with an offset, and silence."""
    rendered = synthetic_clip("train", seed=0, index=3).render()[:32_000].astype(np.float64)
    time = np.arange(16_001) / 16_000
    chirp = 0.3 * np.sin(2 * np.pi * (50 * time + 2000 * time**2)) + 0.05
    return np.concatenate([rendered, np.zeros(4000), chirp, np.zeros(3000)])


def audible(waveform: np.ndarray, config: MelConfig) -> np.ndarray:
    """`[frames, n_mels]` bool: bins that float32 resolves to 1e-4: within 60 dB of the loudest of their frame, or 0.

    The rounding of a float32 FFT is relative to the loudest bin of a frame: the quieter a bin, the larger its error.
    """
    energies = dataclasses.replace(
        config,
        log="none",
        log_floor=0.0,
        log_guard=0.0,
        dynamic_range=None,
        normalize_per_clip=False,
        mean=0.0,
        std=1.0,
    )
    mel = frames_of(waveform, energies)
    return (mel >= 1e-6 * mel.max(axis=1, keepdims=True)) | (mel == 0.0)


def frames_of(waveform: np.ndarray, config: MelConfig, dtype: torch.dtype = torch.float64) -> np.ndarray:
    frames = log_mel(torch.from_numpy(waveform).to(dtype), torch.tensor([0, len(waveform)]), config)
    assert frames.dtype == dtype
    return frames.double().numpy()


@pytest.mark.parametrize("audio", [noise, scene])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_equals_its_origin(name, audio):
    waveform, config = audio(), MelConfig.preset(name)
    error = np.abs(frames_of(waveform, config) - ORIGINS[name](waveform))
    # The others compute in float64; so does AST's, unless torchaudio is installed.
    if name in ("kaldi", "ast", "nemo"):
        error = error[audible(waveform, config)]
    assert error.max() < TOLERANCE


@pytest.mark.parametrize("audio", [noise, scene])
@pytest.mark.parametrize("name", PRESETS)
def test_float32_equals_the_origin_where_it_can(name, audio):
    waveform, config = audio(), MelConfig.preset(name)
    error = np.abs(frames_of(waveform, config, torch.float32) - ORIGINS[name](waveform))[audible(waveform, config)]
    # 1e-4 in natural logarithm is 4e-4 dB.
    assert error.max() < TOLERANCE * max(1.0, config.log_scale)


def test_whisper_equals_what_the_extractor_returns():
    waveform = scene()
    extracted = WhisperFeatureExtractor()(waveform, sampling_rate=16_000, padding=False, return_tensors="np")
    assert np.abs(frames_of(waveform, MelConfig.preset("whisper")) - extracted.input_features[0].T).max() < TOLERANCE


def test_torchaudio_equals_what_the_library_returned():
    actual = frames_of(recorded.sweep(), MelConfig.preset("torchaudio"))
    assert np.abs(actual - recorded.decibels()).max() < TOLERANCE


@pytest.mark.parametrize(("name", "samples"), [("whisper", 161), ("whisper", 200), ("clap", 2), ("clap", 300)])
def test_a_clip_shorter_than_its_reflection(name, samples):
    waveform = noise()[:samples]
    assert np.abs(frames_of(waveform, MelConfig.preset(name)) - ORIGINS[name](waveform)).max() < TOLERANCE


@pytest.mark.parametrize("samples", [80, 100, 399, 400, 1679, 1680])
def test_kaldi_without_snipped_edges(samples):
    waveform, config = noise()[:samples], MelConfig.preset("kaldi", padding="kaldi")
    error = np.abs(frames_of(waveform, config) - kaldi_origin(waveform, snip_edges=False))
    assert error[audible(waveform, config)].max() < TOLERANCE


def test_slap_and_kaldi_differ_in_window_and_range_only():
    changed = MelConfig.preset("kaldi", window="hann_symmetric", input_scale=1.0, n_mels=64)
    assert changed == MelConfig.preset("slap") == MelConfig()
