from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.packed import PackedLayout
from tests.ops._native import BACKENDS
from tests.oracles import log_mel as oracle

SLAP = MelConfig(mean=-4.0, std=3.0)
SMALL = MelConfig(sample_rate=800, n_fft=16, win_length=12, hop_length=5, n_mels=4, f_min=10.0)
WHISPER = MelConfig.preset("whisper")
# 0, 1, around a window, around the second frame, and a second.
LENGTHS = [0, 1, 399, 400, 401, 559, 560, 561, 0, 16_000]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def _clips(lengths: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    samples = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    waveform = (samples * 32768).to(dtype) if dtype == torch.int16 else samples.to(dtype)
    return waveform, PackedLayout.from_lengths(lengths, dtype=torch.int64).cu_seqlens


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.int16, 1e-4), (torch.float64, 1e-9)], ids=str
)
@pytest.mark.parametrize("config", [SLAP, WHISPER], ids=["slap", "whisper"])
def test_every_sample_dtype_equals_the_oracle(config: MelConfig, dtype: torch.dtype, tolerance: float) -> None:
    waveform, cu_seqlens = _clips(LENGTHS, dtype)
    frames = log_mel(waveform, cu_seqlens, config)
    assert frames.dtype == (torch.float32 if dtype == torch.int16 else dtype)
    counts = [config.num_frames(length) for length in LENGTHS]
    assert frames.shape == (sum(counts), config.n_mels)
    for clip, actual in zip(waveform.split(LENGTHS), frames.split(counts), strict=True):
        np.testing.assert_allclose(actual.numpy(), oracle.log_mel(clip.numpy(), config), rtol=0, atol=tolerance)


@each_backend
@pytest.mark.parametrize("shape", [(3, 1000), (1, 399), (2, 3, 561), (1000,), (0, 500), (4, 0), (2, 0, 5)], ids=str)
@pytest.mark.parametrize("config", [SLAP, WHISPER], ids=["slap", "whisper"])
def test_dense_clips_equal_packed_ones_bitwise(config: MelConfig, shape: tuple[int, ...], backend: str) -> None:
    waveform = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dense = log_mel(waveform, None, config, backend=backend)
    assert dense.shape == (*shape[:-1], config.num_frames(shape[-1]), config.n_mels)
    clips = waveform.numel() // shape[-1] if shape[-1] else 0
    packed = log_mel(waveform.flatten(), torch.arange(clips + 1) * shape[-1], config, backend=backend)
    assert torch.equal(dense.flatten(0, -2), packed)
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad(frames, waveform, weights.view_as(frames))[0] for frames in (dense, packed)]
    assert torch.equal(*grads)


@each_backend
@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 0, 3, 0], [399], [561]], ids=str)
def test_empty_and_tiny_clips_have_frames_and_a_gradient(lengths: list[int], backend: str) -> None:
    waveform, cu_seqlens = _clips(lengths)
    frames = log_mel(waveform.requires_grad_(), cu_seqlens, SLAP, backend=backend)
    assert frames.shape == (sum(map(SLAP.num_frames, lengths)), 64)
    frames.sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.shape == waveform.shape
    assert waveform.grad.isfinite().all()


@each_backend
def test_samples_and_offsets_may_be_strided(backend: str) -> None:
    waveform, cu_seqlens = _clips([3000, 1000])
    strided = torch.stack([waveform, waveform + 1], dim=1)[:, 0].requires_grad_()
    offsets = torch.stack([cu_seqlens, cu_seqlens + 7], dim=1)[:, 0]
    assert not strided.is_contiguous()
    assert not offsets.is_contiguous()
    frames = log_mel(strided, offsets, SLAP, backend=backend)
    assert torch.equal(frames, log_mel(waveform, cu_seqlens, SLAP, backend=backend))
    # Gradients may be expanded or transposed too.
    for weights in (torch.ones(1, 1).expand_as(frames), torch.arange(frames.numel()).float().view(64, -1).t()):
        grads = [
            torch.autograd.grad(frames, strided, grad, retain_graph=True)[0] for grad in (weights, weights.contiguous())
        ]
        assert torch.equal(*grads)


@each_backend
@pytest.mark.parametrize("config", [SLAP, WHISPER], ids=["slap", "whisper"])
def test_the_registered_dense_op_takes_strided_clips(config: MelConfig, backend: str) -> None:
    waveform, _ = _clips([3000])
    strided = torch.stack([waveform, waveform + 1], dim=1)[:, 0]
    op = torch.ops.slap_fast.log_mel_dense
    results = []
    for clip in (waveform, strided):
        frames = op(clip.requires_grad_(), config.serialized, backend)
        results.append([frames, *torch.autograd.grad(frames.square().sum(), clip)])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@each_backend
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_silence_gives_the_floor_and_no_gradient(power: float, backend: str) -> None:
    config = dataclasses.replace(SLAP, power=power)
    waveform = torch.zeros(2000, requires_grad=True)
    frames = log_mel(waveform, torch.tensor([0, 2000]), config, backend=backend)
    torch.testing.assert_close(frames, torch.full_like(frames, config.normalized_floor))
    frames.sum().backward()
    assert torch.equal(waveform.grad, torch.zeros(2000))  # type: ignore[arg-type]


@each_backend
@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, normalize_per_clip=True)], ids=["local", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_opcheck(dtype: torch.dtype, config: MelConfig, backend: str) -> None:
    lengths = [5, 0, 40]
    waveform, cu_seqlens = _clips(lengths, dtype)
    counts = [config.num_frames(length) for length in lengths]
    cu_frames = PackedLayout.from_lengths(counts, dtype=torch.int64).cu_seqlens
    waveform.requires_grad_(dtype.is_floating_point)
    offsets = (cu_seqlens, cu_frames, config.serialized)
    torch.library.opcheck(torch.ops.slap_fast.log_mel.default, (waveform, *offsets, sum(counts), backend))
    if dtype.is_floating_point:
        arguments = (waveform.detach(), *offsets, torch.randn(sum(counts), 4), backend)
        torch.library.opcheck(torch.ops.slap_fast.log_mel_backward.default, arguments)


@each_backend
@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, dynamic_range=2.0)], ids=["local", "range"])
def test_compiles_to_one_graph_once_for_changing_lengths(config: MelConfig, backend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()

    def loss(waveform: Tensor, cu_seqlens: Tensor, total_frames: int) -> Tensor:
        return log_mel(waveform, cu_seqlens, config, total_frames=total_frames, backend=backend).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True)
    compilations = set()
    # No two sizes of the first call are equal, and none is 0 or 1: the compiler would treat them as constants.
    for lengths in ([20, 31], [5, 40, 44], [100, 3, 17, 60], [7, 0, 9]):
        waveform, cu_seqlens = _clips(lengths)
        waveform.requires_grad_()
        total = sum(map(config.num_frames, lengths))
        actual, expected = compiled(waveform, cu_seqlens, total), loss(waveform, cu_seqlens, total)
        torch.testing.assert_close(actual, expected)
        grads = [torch.autograd.grad(value, waveform)[0] for value in (actual, expected)]
        torch.testing.assert_close(*grads)
        compilations.add(counter.frame_count)  # the first call may count twice: the compiler may restart its analysis
    assert len(compilations) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"waveform": torch.zeros(2, 100)}, r"\(2, 100\)"),
        ({"waveform": torch.zeros(100, dtype=torch.int32)}, "int32"),
        ({"waveform": torch.tensor(1.0), "cu_seqlens": None}, "waveform has no dimension"),
        ({"waveform": torch.zeros(100, device="meta")}, "cu_seqlens is on cpu, the samples on meta"),
        ({"cu_seqlens": torch.tensor([0, 50])}, "0 to 50; it must run from 0 to the 100 samples"),
        ({"cu_seqlens": torch.tensor([1, 100])}, "1 to 100; it must run from 0 to the 100 samples"),
        ({"cu_seqlens": torch.tensor([0, 80, 60, 100])}, "falls from 80 to 60 at item 1"),
        ({"cu_seqlens": torch.tensor([0, 2**62, 100])}, f"falls from {2**62} to 100 at item 1"),
        ({"cu_seqlens": torch.tensor([0, 100], dtype=torch.int16)}, "int64"),
        ({"cu_seqlens": torch.tensor([[0, 100]])}, r"\(1, 2\)"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int64)}, r"\(0,\)"),
        ({"total_frames": 3}, "total_frames is 3, but the clips have 18 frames"),
        ({"cu_seqlens": None, "total_frames": 3}, "total_frames is 3, but the clips have 18 frames"),
        ({"backend": "fftw"}, "choose one of auto, cuda, native, torch"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"waveform": torch.zeros(100), "cu_seqlens": torch.tensor([0, 100]), "config": SMALL}
    with pytest.raises(ValueError, match=message):
        log_mel(**(arguments | change))


def test_a_compiled_call_without_total_frames_is_rejected_with_the_remedy() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda waveform, cu: log_mel(waveform, cu, SMALL), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"total_frames under torch\.compile"):
        compiled(*_clips([20, 31]))
