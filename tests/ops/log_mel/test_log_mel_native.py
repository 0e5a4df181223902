from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.presets import PRESETS
from slap_fast.ops.packed import PackedLayout
from tests.ops._native import native_code, needs_native
from tests.ops.log_mel._configs import LENGTHS, mel_configs
from tests.oracles import log_mel as oracle

pytestmark = needs_native

SLAP = MelConfig(mean=-4.0, std=3.0)
EPSILON = torch.finfo(torch.float32).eps
# 0, 1, around a window and the second frame, around the number of frames of one task, and a few seconds.
EDGES = [0, 1, 2, 399, 400, 401, 559, 560, 561, 400 + 160 * 62, 400 + 160 * 63, 400 + 160 * 64, 0, 90_001]
# In float32 a value of almost no energy is rounding noise in any implementation; these guards bound how small it gets.
# tests/native covers smaller values, with an error bound for each.
CONDITIONED = {"input_scale": 1.0, "log_guard": 0.1, "dynamic_range": None, "normalize_per_clip": False}


def _clips(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cu_seqlens = PackedLayout.from_lengths(lengths, dtype=torch.int64).cu_seqlens
    return torch.rand(sum(lengths), generator=generator) * 2 - 1, cu_seqlens


def _oracle(waveform: Tensor, lengths: list[int], config: MelConfig) -> Tensor:
    clips = [oracle.log_mel(clip.double().numpy(), config) for clip in waveform.split(lengths)]
    return torch.from_numpy(np.concatenate([np.zeros((0, config.n_mels)), *clips]))


def _gradient(
    waveform: Tensor, cu_seqlens: Tensor, config: MelConfig, backend: str, grad: Tensor | None = None
) -> Tensor:
    """Gradient of the waveform from a random gradient of the frames, or from `grad`."""
    waveform = waveform.detach().clone().requires_grad_()
    frames = log_mel(waveform, cu_seqlens, config, backend=backend)
    if grad is None:
        grad = torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(frames, waveform, grad.to(frames.dtype))[0]


def _assert_as_exact_as_pytorch(actual: Tensor, pytorch: Tensor, exact: Tensor) -> None:
    """At most twice PyTorch's error in the same dtype, plus a few roundings, as PyTorch may be exact by chance."""
    if exact.numel() == 0:
        return
    allowed = 2 * (pytorch - exact).abs().max() + 4 * EPSILON * (1 + exact.abs().max())
    assert (actual - exact).abs().max() <= allowed


@given(config=mel_configs(**CONDITIONED), lengths=st.lists(LENGTHS, max_size=5), seed=st.integers(0, 2**31))
def test_frames_are_as_exact_as_pytorch_for_any_convention(
    isa: str, config: MelConfig, lengths: list[int], seed: int
) -> None:
    waveform, cu_seqlens = _clips(lengths, seed=seed)
    with native_code(isa=isa):
        actual = log_mel(waveform, cu_seqlens, config, backend="native")
    assert actual.dtype == torch.float32
    pytorch = log_mel(waveform, cu_seqlens, config, backend="torch")
    _assert_as_exact_as_pytorch(actual, pytorch, _oracle(waveform, lengths, config))


# The slope of a magnitude near 0 is rounding noise, too.
@given(
    config=mel_configs(**CONDITIONED, power_guard=1e-3),
    lengths=st.lists(LENGTHS, min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_as_exact_as_pytorch_for_any_convention(
    isa: str, config: MelConfig, lengths: list[int], seed: int
) -> None:
    waveform, cu_seqlens = _clips(lengths, seed=seed)
    with native_code(isa=isa):
        actual = _gradient(waveform, cu_seqlens, config, "native")
    pytorch = _gradient(waveform, cu_seqlens, config, "torch")
    exact = _gradient(waveform.double(), cu_seqlens, config, "torch")
    _assert_as_exact_as_pytorch(actual, pytorch, exact)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_equals_float64_forward_and_backward(name: str, isa: str) -> None:
    config = MelConfig.preset(name)
    waveform, cu_seqlens = _clips([700, 0, 9001, 30_000])
    with native_code(isa=isa):
        actual = log_mel(waveform, cu_seqlens, config, backend="native")
        grad = _gradient(waveform, cu_seqlens, config, "native")
    pytorch = log_mel(waveform, cu_seqlens, config, backend="torch")
    exact = log_mel(waveform.double(), cu_seqlens, config, backend="torch")
    _assert_as_exact_as_pytorch(actual, pytorch, exact)
    exact_grad = _gradient(waveform.double(), cu_seqlens, config, "torch")
    pytorch_grad = _gradient(waveform, cu_seqlens, config, "torch")
    assert (grad - exact_grad).norm() <= 2 * (pytorch_grad - exact_grad).norm() + 4 * EPSILON * exact_grad.norm()


@pytest.mark.parametrize(
    "config",
    [
        SLAP,
        MelConfig(padding="kaldi", n_fft=400, hop_length=133),
        MelConfig(padding="reflect", frame_span="n_fft", preemphasis_scope="clip", n_fft=1024, power=1.0),
        MelConfig(hop_length=500, n_fft=401, n_mels=5),
    ],
    ids=["slap", "kaldi", "reflect", "gaps"],
)
def test_bits_depend_on_neither_threads_nor_batch_nor_call(config: MelConfig, isa: str) -> None:
    waveform, cu_seqlens = _clips(EDGES)
    grad = torch.randn(sum(map(config.num_frames, EDGES)), config.n_mels, generator=torch.Generator().manual_seed(2))
    counts = [config.num_frames(length) for length in EDGES]
    with native_code(isa=isa):
        clips = [(clip, torch.tensor([0, len(clip)])) for clip in waveform.split(EDGES)]
        alone = torch.cat([log_mel(*clip, config, backend="native") for clip in clips])
        grad_alone = torch.cat(
            [_gradient(*clip, config, "native", part) for clip, part in zip(clips, grad.split(counts), strict=True)]
        )
    for threads in (1, 2, 5, 1):
        with native_code(isa=isa, threads=threads):
            assert torch.equal(log_mel(waveform, cu_seqlens, config, backend="native"), alone)
            assert torch.equal(_gradient(waveform, cu_seqlens, config, "native", grad), grad_alone)


@given(config=mel_configs(), lengths=st.lists(LENGTHS, min_size=1, max_size=3))
def test_int16_samples_equal_floats_divided_by_32768(isa: str, config: MelConfig, lengths: list[int]) -> None:
    waveform, cu_seqlens = _clips(lengths)
    samples = (waveform * 32768).to(torch.int16)
    samples[:1], samples[-1:] = -32768, 32767
    with native_code(isa=isa):
        actual = log_mel(samples, cu_seqlens, config, backend="native")
        expected = log_mel(samples.float() / 32768, cu_seqlens, config, backend="native")
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@given(config=mel_configs(**CONDITIONED), lengths=st.lists(LENGTHS, min_size=1, max_size=4), data=st.data())
def test_nan_reaches_the_frames_that_hold_it_and_no_others(
    isa: str, config: MelConfig, lengths: list[int], data: st.DataObject
) -> None:
    waveform, cu_seqlens = _clips(lengths)
    if sum(lengths):
        waveform[data.draw(st.integers(0, sum(lengths) - 1))] = torch.nan
    with native_code(isa=isa):
        actual = log_mel(waveform, cu_seqlens, config, backend="native")
    assert torch.equal(actual.isnan(), _oracle(waveform, lengths, config).isnan())


@pytest.mark.parametrize("sample", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_sample_changes_no_gradient_beyond_its_frames(sample: float, isa: str) -> None:
    lengths = [3000, 20_000, 1000]
    waveform, cu_seqlens = _clips(lengths)
    spoiled = waveform.clone()
    spoiled[3000 + 7000] = sample
    with native_code(isa=isa):
        changed = _gradient(waveform, cu_seqlens, SLAP, "native") != _gradient(spoiled, cu_seqlens, SLAP, "native")
    assert not changed[: 3000 + 7000 - 560].any()
    assert not changed[3000 + 7000 + 560 :].any()
    assert changed.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-38, 1e-42])
def test_samples_whose_squares_underflow_are_silence(scale: float, isa: str) -> None:
    waveform, cu_seqlens = _clips([5000])
    with native_code(isa=isa):
        frames = log_mel(waveform * scale, cu_seqlens, SLAP, backend="native")
        grad = _gradient(waveform * scale, cu_seqlens, SLAP, "native")
    torch.testing.assert_close(frames, torch.full_like(frames, SLAP.normalized_floor))
    assert torch.equal(grad, torch.zeros_like(grad))


def test_an_hour_in_one_clip() -> None:
    hour = torch.rand(3600 * 16_000, generator=torch.Generator().manual_seed(0))
    frames = log_mel(hour, torch.tensor([0, len(hour)]), SLAP, backend="native")
    count = SLAP.num_frames(len(hour))
    assert frames.shape == (count, 64)
    assert frames.isfinite().all()
    for frame in (0, 1, 65_535, 65_536, 200_003, count - 1):
        samples = hour[frame * 160 : frame * 160 + 400].numpy()
        pytorch = log_mel(torch.from_numpy(samples), torch.tensor([0, len(samples)]), SLAP, backend="torch")
        _assert_as_exact_as_pytorch(frames[frame], pytorch[0], torch.from_numpy(oracle.log_mel(samples, SLAP)[0]))


def test_a_gradient_over_many_tasks_of_one_clip_equals_float64() -> None:
    config = dataclasses.replace(SLAP, padding="reflect", pad_length=30_000, preemphasis_scope="clip")
    waveform, cu_seqlens = _clips([200_001])
    exact = _gradient(waveform.double(), cu_seqlens, config, "torch")
    actual = _gradient(waveform, cu_seqlens, config, "native")
    assert (actual - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(100, dtype=torch.float64), "the waveform is torch.float64; native code takes float32 and int16"),
        (torch.zeros(100, device="meta"), "the waveform is on meta; native code reads CPU memory"),
    ],
)
def test_what_native_code_cannot_serve_is_named(waveform: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(waveform, None, SLAP, backend="native")
