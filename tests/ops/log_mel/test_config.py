from __future__ import annotations

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.presets import PRESETS
from slap_fast.ops.log_mel.tables import mel_filters, window
from tests.ops.log_mel._configs import mel_configs
from tests.oracles import log_mel as oracle


@given(mel_configs(), st.integers(0, 300))
def test_num_frames_counts_the_frames_one_by_one(config, n_samples):
    assert config.num_frames(n_samples) == oracle.count_frames(n_samples, config)


@given(mel_configs())
def test_the_tables_equal_their_definitions(config):
    np.testing.assert_allclose(window(config), oracle.window(config), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mel_filters(config), oracle.mel_filters(config), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", PRESETS)
def test_the_tables_of_a_preset_equal_their_definitions(name):
    config = MelConfig.preset(name)
    np.testing.assert_allclose(window(config), oracle.window(config), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mel_filters(config), oracle.mel_filters(config), rtol=1e-9, atol=1e-11)


def test_tables_are_read_only():
    for table in (window(MelConfig()), mel_filters(MelConfig())):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1.0


@given(mel_configs())
def test_a_config_survives_its_serialization(config):
    assert MelConfig(**json.loads(config.serialized)) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_preset_takes_changes():
    config = MelConfig.preset("whisper", n_mels=128)
    assert config == MelConfig.preset("whisper-v3")
    assert dataclasses.replace(config, n_mels=80) == MelConfig.preset("whisper")
    assert hash(config) == hash(MelConfig.preset("whisper-v3"))


def test_num_frames_of_known_clips():
    assert MelConfig().num_frames(16_000) == 98
    assert MelConfig.preset("kaldi", padding="kaldi").num_frames(16_000) == 100
    assert MelConfig.preset("whisper").num_frames(480_000) == 3000
    assert MelConfig.preset("clap").num_frames(480_000) == 1001
    assert MelConfig.preset("nemo").num_frames(16_000) == 100
    assert MelConfig.preset("librosa").num_frames(22_050) == 44


@given(mel_configs(power_guard=0.0, preemphasis=0.0, dynamic_range=None), st.integers(1, 100))
def test_silence_becomes_the_normalized_floor(config, n_samples):
    frames = oracle.log_mel(np.zeros(n_samples), config)
    # NeMo's guard of 1e-5 amplifies the rounding of the mean of a constant.
    tolerance = 1e-7 if config.normalize_per_clip else 1e-12
    np.testing.assert_allclose(frames, config.normalized_floor, rtol=1e-12, atol=tolerance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hop_length": 0}, "hop_length is 0; it must be an integer of at least 1"),
        ({"n_mels": -3}, "n_mels is -3; it must be an integer of at least 1"),
        ({"sample_rate": 0}, "sample_rate is 0; it must be an integer of at least 1"),
        ({"hop_length": 160.5}, "hop_length is 160.5; it must be an integer"),
        ({"n_mels": True}, "n_mels is True; it must be an integer"),
        ({"pad_length": 2.0, "padding": "zeros"}, "pad_length is 2.0; it must be an integer or None"),
        ({"n_fft": 100}, r"n_fft is 100; it must be at least win_length \(400\)"),
        ({"window": "kaiser"}, "window is 'kaiser'; choose one of 'hann_periodic'"),
        ({"padding": "edge"}, "padding is 'edge'; choose one of 'none', 'zeros', 'reflect', 'kaldi'"),
        ({"log": "log2"}, "log is 'log2'; choose one of"),
        ({"pad_length": 20}, "pad_length is 20 with padding 'none'.*set padding to 'zeros' or 'reflect'"),
        ({"pad_length": -1, "padding": "zeros"}, "pad_length is -1; it must be finite and at least 0"),
        ({"padding": "kaldi", "frame_span": "n_fft"}, "needs frame_span='win_length'"),
        ({"preemphasis": 1.5}, r"preemphasis is 1.5; it must lie in \[0, 1\]"),
        ({"power": 3.0}, r"power is 3.0; choose 1 \(magnitude\) or 2 \(power\)"),
        ({"power_guard": -1.0}, "power_guard is -1.0; it must be finite and at least 0"),
        ({"f_max": 9000.0}, "f_min, f_max are 20.0, 9000.0; 0 <= f_min < f_max <= 8000.0 must hold"),
        ({"f_min": 8000.0, "f_max": 8000.0}, "f_min, f_max are 8000.0, 8000.0"),
        ({"log_floor": 0.0}, r"log_floor \+ log_guard is 0.0; the logarithm of silence needs at least 1.18e-38"),
        ({"log_floor": math.inf}, "log_floor is inf; it must be finite"),
        ({"dynamic_range": math.nan}, "dynamic_range is nan; it must be finite"),
        ({"std": 0.0}, "std is 0.0; it must be positive and finite"),
        ({"mean": math.nan}, "mean is nan; it must be finite"),
        ({"input_scale": 0.0}, "input_scale is 0.0; it must be positive and finite"),
    ],
)
def test_an_invalid_value_is_rejected_with_field_value_and_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        MelConfig(**changes)


def test_an_unknown_preset_is_rejected_with_the_known_ones():
    with pytest.raises(ValueError, match="no mel preset 'whisperx'; choose one of slap, kaldi, ast, whisper"):
        MelConfig.preset("whisperx")


def test_a_change_to_an_unknown_field_is_rejected():
    with pytest.raises(TypeError, match="hop_size"):
        MelConfig.preset("slap", hop_size=100)
