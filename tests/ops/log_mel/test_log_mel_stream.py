from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.ops import LogMelStream, dispatch
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.presets import PRESETS

# In PyTorch the rounding of a frame depends on the number of frames: a stream is then only close.
EXACT = dict(dispatch.report()["log_mel"]).get("native", "not there") is None
LOCAL = [name for name in PRESETS if MelConfig.preset(name).is_local]


def _clip(length, dtype=torch.float32, seed=0):
    clip = torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return (clip * 32767).to(torch.int16) if dtype == torch.int16 else clip.to(dtype)


def _whole(clip, config):
    return log_mel(clip, torch.tensor([0, clip.shape[0]]), config)


def _assert_same(actual, expected):
    if EXACT and expected.dtype == torch.float32:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def _streamed(stream, chunks):
    return torch.cat([*(stream.push(chunk) for chunk in chunks), stream.flush()])


@st.composite
def local_configs(draw):
    win_length = draw(st.integers(2, 24))
    padding = draw(st.sampled_from(["none", "zeros", "reflect", "kaldi"]))
    return MelConfig(
        sample_rate=800,
        n_fft=win_length + draw(st.integers(0, 12)),
        win_length=win_length,
        hop_length=draw(st.integers(1, 40)),
        window=draw(st.sampled_from(["hann_periodic", "hamming_symmetric", "povey", "rectangular"])),
        frame_span="win_length" if padding == "kaldi" else draw(st.sampled_from(["win_length", "n_fft"])),
        padding=padding,
        pad_length=draw(st.none() | st.integers(0, 60)) if padding in ("zeros", "reflect") else None,
        drop_last_frame=draw(st.booleans()),
        remove_dc_offset=draw(st.booleans()),
        preemphasis=draw(st.sampled_from([0.0, 0.97])),
        preemphasis_scope=draw(st.sampled_from(["frame", "clip"])),
        power=draw(st.sampled_from([1.0, 2.0])),
        n_mels=draw(st.integers(1, 5)),
        log=draw(st.sampled_from(["natural", "db", "none"])),
        mean=-1.5,
        std=3.0,
    )


@settings(max_examples=300)
@given(
    config=local_configs(),
    chunks=st.lists(st.integers(0, 3) | st.integers(0, 150), min_size=1, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int16] if EXACT else [torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_chunks_of_any_size_give_the_whole_clip(config, chunks, dtype, seed):
    clip = _clip(sum(chunks), dtype, seed)
    _assert_same(_streamed(LogMelStream(config), clip.split(chunks)), _whole(clip, config))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hop_length": 17, "drop_last_frame": True},
        {"frame_span": "n_fft"},
        {"padding": "zeros", "preemphasis": 0.5, "preemphasis_scope": "clip"},
        {"padding": "reflect", "frame_span": "n_fft"},
        {"padding": "reflect", "pad_length": 30, "hop_length": 17, "preemphasis": 0.5, "preemphasis_scope": "clip"},
        {"padding": "kaldi"},
        {"padding": "kaldi", "hop_length": 17, "drop_last_frame": True},
    ],
)
def test_a_frame_is_returned_as_soon_as_no_later_sample_can_change_it(changes):
    # Every sample of a window matters: no zeros at the ends of the window, no bin outside the filters.
    small = MelConfig(sample_rate=800, n_fft=16, win_length=11, hop_length=5, window="rectangular", n_mels=3, f_min=0.0)
    config = dataclasses.replace(small, **{"remove_dc_offset": False, "preemphasis": 0.0, **changes})
    stream = LogMelStream(config)
    clip, arrived = _clip(60, torch.float64), 0
    for length in range(61):
        arrived += len(stream.push(clip[length - 1 : length] if length else clip[:0]))
        futures = [clip[:length], *(torch.cat([clip[:length], _clip(99, torch.float64, seed)]) for seed in (1, 2))]
        now, *later = (_whole(future, config) for future in futures)
        same = torch.stack([torch.isclose(frames[: len(now)], now) for frames in later]).all(dim=2).all(dim=0)
        assert arrived == int(same.cumprod(0).sum())


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_every_local_preset_streams_bitwise_equal(name, dtype):
    config = MelConfig.preset(name)
    clip = _clip(2 * config.sample_rate + 77, dtype)
    chunks = clip.split([1, 0, 399, 1, 160, 12_345, clip.shape[0] - 12_906])
    _assert_same(_streamed(LogMelStream(config), chunks), _whole(clip, config))


def test_one_sample_at_a_time():
    config = MelConfig()
    clip = _clip(2000)
    stream = LogMelStream(config)
    counts = [len(stream.push(sample)) for sample in clip.split(1)]
    assert [index + 1 for index, count in enumerate(counts) if count] == list(range(400, 2001, 160))
    assert len(stream.flush()) == 0


def test_flush_resets_the_stream():
    config = MelConfig(padding="reflect")
    stream = LogMelStream(config)
    for seed, (length, dtype) in enumerate([(1234, torch.float32), (0, torch.float32), (50, torch.int16)]):
        clip = _clip(length, dtype, seed)
        _assert_same(_streamed(stream, clip.split(100)), _whole(clip, config))


def test_no_samples_give_no_frames():
    frames = [LogMelStream(MelConfig()).flush()]
    torch.set_default_dtype(torch.float64)
    try:
        frames.append(LogMelStream(MelConfig()).flush())
    finally:
        torch.set_default_dtype(torch.float32)
    assert [(tensor.shape, tensor.dtype) for tensor in frames] == [((0, 64), torch.float32)] * 2


@pytest.mark.parametrize("size", [1, 37, 5000])
def test_an_endless_stream_holds_a_few_frames_of_samples(size):
    config = MelConfig(padding="reflect", preemphasis_scope="clip")
    stream = LogMelStream(config)
    held = []
    for _ in range(6000 // size + 20):
        stream.push(_clip(size))
        held.append(sum(part.untyped_storage().nbytes() for part in stream.__dict__["_parts"]))
    assert max(held) <= 4 * 1200


def test_empty_chunks_use_no_memory():
    stream = LogMelStream(MelConfig())
    for _ in range(1000):
        assert len(stream.push(_clip(0))) == 0
    assert len(pickle.dumps(stream)) < 5000


def test_the_caller_may_reuse_the_chunk():
    config, clip, buffer = MelConfig(), _clip(1600), torch.empty(200)
    stream = LogMelStream(config)
    frames = []
    for chunk in clip.split(200):
        buffer.copy_(chunk)
        frames.append(stream.push(buffer))
        buffer.fill_(torch.nan)
    _assert_same(torch.cat([*frames, stream.flush()]), _whole(clip, config))


def test_a_stream_can_be_pickled_midway():
    config, clip = MelConfig(), _clip(1600)
    stream = LogMelStream(config)
    first = stream.push(clip[:777])
    second = _streamed(pickle.loads(pickle.dumps(stream)), [clip[777:]])
    _assert_same(torch.cat([first, second]), _whole(clip, config))


@pytest.mark.parametrize(("name", "field"), [("whisper", "dynamic_range"), ("nemo", "normalize_per_clip")])
def test_a_convention_over_the_whole_clip_is_rejected_with_the_remedy(name, field):
    with pytest.raises(ValueError, match=rf"MelConfig\.{field} is .*dataclasses\.replace\(config, {field}="):
        LogMelStream(MelConfig.preset(name))
    off = {"dynamic_range": None, "normalize_per_clip": False}[field]
    config = dataclasses.replace(MelConfig.preset(name), **{field: off})
    clip = _clip(3000)
    _assert_same(_streamed(LogMelStream(config), clip.split(700)), _whole(clip, config))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([0.0, 1.0], "chunk is a list"),
        (torch.zeros(1, 10), r"shape \(1, 10\)"),
        (torch.zeros(10, dtype=torch.int32), "torch.int32"),
        (torch.zeros(10, dtype=torch.int16), "torch.int16.*flush"),
    ],
)
def test_an_invalid_chunk_is_rejected_and_leaves_the_stream_unchanged(chunk, message):
    config, clip = MelConfig(), _clip(1000)
    stream = LogMelStream(config)
    first = stream.push(clip[:500])
    with pytest.raises(ValueError, match=message):
        stream.push(chunk)
    _assert_same(torch.cat([first, _streamed(stream, [clip[500:]])]), _whole(clip, config))


@pytest.mark.gpu
def test_frames_are_on_the_device_of_the_chunks():
    config, clip = MelConfig(), _clip(16_000).cuda()
    _assert_same(_streamed(LogMelStream(config), clip.split(1000)), _whole(clip, config))
