from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.mel_config import MelConfig
from slap_fast.ops.packing import PackedLayout
from tests.oracles.log_mel import log_mel as oracle

SLAP = MelConfig(mean=-4.0, std=3.0)
SMALL = MelConfig(sample_rate=800, n_fft=16, win_length=12, hop_length=5, n_mels=4, f_min=10.0)
# No sample, one, around a window, around the second frame, and a few seconds.
LENGTHS = [0, 1, 399, 400, 401, 559, 560, 561, 0, 16_000]


def _clips(lengths, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.rand(sum(lengths), generator=generator, dtype=torch.float64) * 2 - 1
    return waveform.to(dtype), PackedLayout.from_lengths(lengths, dtype=torch.int64)


@pytest.mark.parametrize(
    "config",
    [
        SLAP,
        MelConfig(window="hann_periodic", power=1.0, remove_dc_offset=False, preemphasis=0.0),
        MelConfig(n_fft=400, n_mels=20, f_min=0.0, f_max=7000.0),
        MelConfig(win_length=320, hop_length=333, n_fft=1024),
    ],
)
def test_frames_equal_the_oracle_clip_by_clip(config):
    waveform, layout = _clips(LENGTHS)
    frames = log_mel(waveform, layout.cu_seqlens, config)
    counts = [config.num_frames(length) for length in LENGTHS]
    assert frames.shape == (sum(counts), config.n_mels)
    for clip, actual in zip(waveform.split(LENGTHS), frames.split(counts), strict=True):
        torch.testing.assert_close(actual, torch.from_numpy(oracle(clip.numpy(), config)))


def test_float32_stays_within_1e_4_of_the_log_value():
    waveform, layout = _clips([16_000, 8_000], dtype=torch.float32)
    config = MelConfig()
    actual = log_mel(waveform, layout.cu_seqlens, config).double().numpy()
    expected = np.concatenate([oracle(clip.numpy(), config) for clip in waveform.split([16_000, 8_000])])
    assert np.abs(actual - expected).max() < 1e-4


def test_it_is_the_filterbank_of_the_ast_feature_extractor():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    waveform, layout = _clips([16_000])
    filters = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=128,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16_000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    expected = spectrogram(
        waveform.numpy(),
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
    actual = log_mel(waveform, layout.cu_seqlens, MelConfig(n_mels=128)).numpy()
    assert np.abs(actual - expected).max() < 1e-4


def test_packed_equals_one_by_one_to_rounding():
    waveform, layout = _clips(LENGTHS, dtype=torch.float32)
    packed = log_mel(waveform, layout.cu_seqlens, SLAP)
    alone = [
        log_mel(clip, PackedLayout.from_lengths([len(clip)], dtype=torch.int64).cu_seqlens, SLAP)
        for clip in waveform.split(LENGTHS)
    ]
    # The mel product runs over all frames at once, and its blocking follows the number of rows.
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_clip_longer_than_a_chunk_of_frames():
    waveform, layout = _clips([160 * 17_000], dtype=torch.float32)
    frames = log_mel(waveform, layout.cu_seqlens, SLAP)
    begin = 160 * 16_380
    tail = oracle(waveform[begin : begin + 400 + 160 * 9].numpy(), SLAP)
    assert np.abs(frames[16_380:16_390].numpy() - tail).max() < 1e-4


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, power=1.0, hop_length=12)])
def test_gradcheck(config):
    waveform, layout = _clips([0, 5, 12, 31])
    assert torch.autograd.gradcheck(lambda x: log_mel(x, layout.cu_seqlens, config), waveform.requires_grad_())


def test_silence_has_the_floor_as_value_and_no_gradient():
    for power in (1.0, 2.0):
        config = dataclasses.replace(SLAP, power=power)
        waveform = torch.zeros(2000, requires_grad=True)
        frames = log_mel(waveform, torch.tensor([0, 2000]), config)
        torch.testing.assert_close(frames, torch.full_like(frames, config.normalized_floor))
        frames.sum().backward()
        assert torch.equal(waveform.grad, torch.zeros(2000))


def test_the_backward_is_deterministic():
    waveform, layout = _clips([5000, 300], dtype=torch.float32)
    waveform.requires_grad_()
    frames = log_mel(waveform, layout.cu_seqlens, SLAP)
    grads = [torch.autograd.grad(frames.square().sum(), waveform, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_opcheck():
    waveform, layout = _clips([5, 40], dtype=torch.float32)
    frames = sum(SMALL.num_frames(length) for length in (5, 40))
    torch.library.opcheck(
        torch.ops.slap_fast.log_mel,
        (waveform.requires_grad_(), layout.cu_seqlens, SMALL.serialized, frames, "torch"),
    )


def test_compiles_whole_and_once_for_changing_lengths():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def frontend(waveform, cu_seqlens, total_frames):
        return log_mel(waveform, cu_seqlens, SMALL, total_frames=total_frames) + 1

    for lengths in ([20, 31], [5, 40, 44], [100, 3, 17, 60]):
        waveform, layout = _clips(lengths)
        total = sum(SMALL.num_frames(length) for length in lengths)
        torch.testing.assert_close(
            frontend(waveform, layout.cu_seqlens, total), log_mel(waveform, layout.cu_seqlens, SMALL) + 1
        )
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"waveform": torch.zeros(2, 100)}, r"\(2, 100\)"),
        ({"waveform": torch.zeros(100, dtype=torch.int32)}, "int32"),
        ({"cu_seqlens": torch.tensor([0, 50])}, "0 to the 100 samples"),
        ({"cu_seqlens": torch.tensor([0, 80, 60, 100])}, "falls from 80 to 60 at clip 1"),
        ({"cu_seqlens": torch.tensor([0, 100], dtype=torch.int32)}, "int64"),
        ({"total_frames": 3}, "but the clips have 18 frames"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"waveform": torch.zeros(100), "cu_seqlens": torch.tensor([0, 100]), "config": SMALL} | change
    with pytest.raises(ValueError, match=message):
        log_mel(**arguments)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hop_length", 0), ("n_fft", 100), ("window", "kaiser"), ("f_max", 9000.0), ("std", 0.0), ("power", 3.0)],
)
def test_a_config_that_means_nothing_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(MelConfig(), **{field: value})
