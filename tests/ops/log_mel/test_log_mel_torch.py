from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.presets import PRESETS
from slap_fast.ops.packed import PackedLayout
from tests.ops.log_mel._configs import LENGTHS, mel_configs
from tests.oracles import log_mel as oracle

SMALL = MelConfig(sample_rate=800, n_fft=16, win_length=12, hop_length=5, n_mels=4, f_min=10.0)


def _clips(lengths, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.rand(sum(lengths), generator=generator, dtype=torch.float64) * 2 - 1
    return waveform, PackedLayout.from_lengths(lengths, dtype=torch.int64).cu_seqlens


def _oracle(waveform, lengths, config):
    empty = np.zeros((0, config.n_mels))
    return np.concatenate([empty, *(oracle.log_mel(clip.numpy(), config) for clip in waveform.split(lengths))])


def _tolerance(config):
    # NeMo's guard of 1e-5 amplifies the rounding of a nearly constant bin.
    return 1e-6 if config.normalize_per_clip else 1e-9


@given(mel_configs(), st.lists(LENGTHS, min_size=1, max_size=5), st.integers(0, 2**31))
def test_frames_equal_the_oracle_for_any_convention(config, lengths, seed):
    waveform, cu_seqlens = _clips(lengths, seed=seed)
    actual = log_mel(waveform, cu_seqlens, config, backend="torch").numpy()
    np.testing.assert_allclose(actual, _oracle(waveform, lengths, config), rtol=1e-8, atol=_tolerance(config))


@given(mel_configs(normalize_per_clip=False, input_scale=1.0), st.lists(LENGTHS, min_size=1, max_size=3))
def test_int16_samples_equal_floats_divided_by_32768(config, lengths):
    waveform, cu_seqlens = _clips(lengths)
    samples = (waveform * 32768).to(torch.int16)
    actual = log_mel(samples, cu_seqlens, config, backend="torch")
    expected = log_mel(samples.float() / 32768, cu_seqlens, config, backend="torch")
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@given(mel_configs(preemphasis=0.97), st.lists(LENGTHS, min_size=1, max_size=4), st.data())
def test_nan_reaches_the_frames_that_hold_it_and_no_others(config, lengths, data):
    waveform, cu_seqlens = _clips(lengths)
    if sum(lengths):
        waveform[data.draw(st.integers(0, sum(lengths) - 1))] = torch.nan
    actual = log_mel(waveform, cu_seqlens, config, backend="torch").numpy()
    np.testing.assert_allclose(actual, _oracle(waveform, lengths, config), rtol=1e-8, atol=_tolerance(config))


@given(mel_configs(dynamic_range=None, normalize_per_clip=False), st.lists(LENGTHS, min_size=1, max_size=4))
def test_nan_reaches_only_the_gradient_of_its_own_clip(config, lengths):
    waveform, cu_seqlens = _clips(lengths)
    poisoned = waveform.clone()
    poisoned[: lengths[0]] = torch.nan
    grads = []
    for samples in (waveform.requires_grad_(), poisoned.requires_grad_()):
        grads.extend(torch.autograd.grad(log_mel(samples, cu_seqlens, config, backend="torch").sum(), samples))
    assert torch.equal(*(grad[lengths[0] :] for grad in grads))


def test_frames_on_both_sides_of_a_chunk_boundary():
    config = dataclasses.replace(SMALL, padding="reflect", preemphasis_scope="clip")
    lengths = [5 * 1022, 7, 5 * 1030]
    waveform, cu_seqlens = _clips(lengths)
    actual = log_mel(waveform, cu_seqlens, config, backend="torch").numpy()
    np.testing.assert_allclose(actual, _oracle(waveform, lengths, config), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_equals_the_oracle(name):
    lengths = [1, 700, 3001]
    waveform, cu_seqlens = _clips(lengths)
    config = MelConfig.preset(name)
    actual = log_mel(waveform, cu_seqlens, config, backend="torch").numpy()
    np.testing.assert_allclose(actual, _oracle(waveform, lengths, config), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"power": 1.0, "hop_length": 12, "log": "db"},
        {"power": 1.0, "power_guard": 1e-2, "remove_dc_offset": False, "preemphasis": 0.0},
        {"hop_length": 17, "n_fft": 15, "window": "povey", "log": "log10"},
        {"win_length": 1, "n_fft": 4, "hop_length": 2, "remove_dc_offset": False, "preemphasis": 0.5},
        {"padding": "zeros", "frame_span": "n_fft", "input_scale": 8.0, "mean": -1.0, "std": 3.0},
        {"padding": "zeros", "preemphasis_scope": "clip", "log_floor": 0.0, "log_guard": 1e-3},
        {"padding": "reflect", "preemphasis_scope": "clip", "remove_dc_offset": False, "window": "rectangular"},
        {"padding": "reflect", "pad_length": 40, "frame_span": "n_fft", "log": "none"},
        {"padding": "kaldi", "hop_length": 3, "mel_scale": "slaney", "mel_norm": "slaney"},
        {"padding": "kaldi", "hop_length": 25, "drop_last_frame": True, "mel_scale": "htk"},
    ],
    ids=str,
)
def test_gradcheck(changes):
    config = dataclasses.replace(SMALL, **changes)
    waveform, cu_seqlens = _clips([0, 1, 5, 12, 31])
    waveform.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_mel(x, cu_seqlens, config, backend="torch"), waveform)


def test_mel_values_at_the_floor_pass_no_gradient():
    config = dataclasses.replace(SMALL, log_floor=1e6)
    waveform, cu_seqlens = _clips([40])
    log_mel(waveform.requires_grad_(), cu_seqlens, config, backend="torch").sum().backward()
    assert torch.equal(waveform.grad, torch.zeros(40))


@pytest.mark.parametrize("power_guard", [0.0, 1e-9])
def test_the_magnitude_of_silence_has_a_finite_slope(power_guard):
    config = dataclasses.replace(SMALL, power=1.0, power_guard=power_guard, log_floor=0.0, log_guard=1e-5)
    waveform = torch.zeros(40, requires_grad=True)
    log_mel(waveform, torch.tensor([0, 40]), config, backend="torch").sum().backward()
    assert torch.equal(waveform.grad, torch.zeros(40))


@given(mel_configs(padding="reflect", frame_span="n_fft"))
def test_the_gradient_is_the_same_bits_at_every_call(config):
    waveform, cu_seqlens = _clips([61, 3, 200])
    waveform = waveform.float().requires_grad_()
    frames = log_mel(waveform, cu_seqlens, config, backend="torch")
    grads = [torch.autograd.grad(frames.square().sum(), waveform, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_autocast_does_not_lower_the_precision():
    waveform, cu_seqlens = _clips([400])
    waveform = waveform.float().requires_grad_()
    expected = log_mel(waveform, cu_seqlens, SMALL, backend="torch")
    (expected_grad,) = torch.autograd.grad(expected.sum(), waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = log_mel(waveform, cu_seqlens, SMALL, backend="torch")
        (grad,) = torch.autograd.grad(actual.sum(), waveform)
    assert torch.equal(actual, expected)
    assert torch.equal(grad, expected_grad)
