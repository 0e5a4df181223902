from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from slap_fast.ops.log_mel import backend_cuda, backend_torch
from slap_fast.ops.log_mel.backend_native import clip_arguments
from slap_fast.ops.log_mel.call import LogMelCall
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.presets import PRESETS
from tests.canaries import Guarded
from tests.oracles import log_mel as oracle

ROOT = Path(__file__).parents[3]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
NVCC = shutil.which("nvcc")

# Ceilings of registers per thread by FFT size: two blocks fit on a multiprocessor, which has 65,536.
MAX_REGISTERS = {"256": 128, "400": 96, "512": 64, "1024": 128, "2048": 128, "loops": 64}
KERNEL = re.compile(
    r"Compiling entry function '\S*log_mel_(?P<pass>forward|backward)\S*?"
    r"(?:RegisterTransformILi(?P<steps>\d+)ELi(?P<columns>\d+)E|LoopTransform)\S*' for 'sm_(?P<architecture>\d+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_blocks_emulated_on_the_cpu_equal_the_definition_forward_and_backward(tmp_path: Path) -> None:
    program = tmp_path / "emulation"
    sources = ["csrc/cuda/log_mel_plan.cpp", "tests/native/log_mel_cuda_test.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
    subprocess.run([str(COMPILER), *flags, *sources, "-o", str(program)], cwd=ROOT, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_kernels_do_not_spill_registers(tmp_path: Path) -> None:
    # The PTX is the same for both but for the name of the target, so one pass of the compiler serves them.
    target = "-gencode=arch=compute_80,code=[sm_80,sm_90]"
    command = [str(NVCC), "-std=c++17", "-O3", "-Icsrc", target, "-Xptxas=-v", "-fatbin", "csrc/cuda/log_mel.cu"]
    done = subprocess.run([*command, "-o", str(tmp_path / "log_mel.fatbin")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert "warning" not in report
    seen = set()
    for kernel in KERNEL.finditer(report):
        size = str(int(kernel["steps"]) * int(kernel["columns"])) if kernel["steps"] else "loops"
        seen.add((kernel["architecture"], kernel["pass"], size))
        assert (kernel["stack"], kernel["stores"], kernel["loads"]) == ("0", "0", "0"), (size, kernel["pass"])
        assert int(kernel["registers"]) <= MAX_REGISTERS[size], (size, kernel["pass"])
    assert seen == set(product(("80", "90"), ("forward", "backward"), MAX_REGISTERS))


def test_what_the_kernels_cannot_serve_is_named() -> None:
    gpu = torch.device("cuda", 0)

    def reason(device: torch.device, dtype: torch.dtype, n_fft: int) -> str:
        return backend_cuda.rejects(device=device, dtype=dtype, config=MelConfig(n_fft=n_fft)) or ""

    assert reason(gpu, torch.float32, 512) == reason(gpu, torch.int16, 4096) == ""
    assert "on cpu" in reason(torch.device("cpu"), torch.float32, 512)
    assert "float64" in reason(gpu, torch.float64, 512)
    assert "n_fft is 8192" in reason(gpu, torch.float32, 8192)


def test_without_a_gpu_it_is_unavailable_with_a_reason() -> None:
    if not torch.cuda.is_available():
        assert backend_cuda.unavailable()


LENGTHS = [16_000, 0, 1, 2, 399, 400, 401, 40_123, 70_001]
CONFIGS = [
    *(MelConfig.preset(name) for name in PRESETS),
    MelConfig(n_fft=400, remove_dc_offset=False, preemphasis=0.0),
    MelConfig(n_fft=441, win_length=441, hop_length=7),
    MelConfig(n_fft=601, win_length=601, hop_length=1500, padding="kaldi"),
    MelConfig(n_fft=256, win_length=256, hop_length=64, power=1.0, power_guard=1e-9, padding="reflect"),
    MelConfig(n_fft=4096, win_length=4096, hop_length=1024, padding="reflect", n_mels=256, preemphasis_scope="clip"),
    MelConfig(log="none", log_floor=0.0, input_scale=32768.0),
]


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)


class _Batch:
    """Packed int16 samples on the CPU, the same as floats in [-1, 1], their offsets, and a gradient of the frames."""

    def __init__(self, config: MelConfig, lengths: list[int], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        samples = 0.1 * torch.randn(sum(lengths), generator=generator) + 0.02
        self.int16 = (samples.clamp(-1, 1) * 32767).to(torch.int16)
        self.float64 = self.int16.double() / 32768.0
        self.cu_seqlens = _offsets(lengths)
        self.cu_frames = _offsets([config.num_frames(length) for length in lengths])
        self.config = config.serialized
        self.total_frames = int(self.cu_frames[-1])
        self.grad = torch.randn(self.total_frames, config.n_mels, generator=generator, dtype=torch.float64)

    def on_cpu(self, waveform: Tensor) -> LogMelCall:
        return LogMelCall(waveform, self.cu_seqlens, self.cu_frames, self.config)

    def on_gpu(self, waveform: Tensor) -> LogMelCall:
        return LogMelCall(waveform.cuda(), self.cu_seqlens.cuda(), self.cu_frames.cuda(), self.config)


@contextmanager
def _no_host_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _rms_ratio(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.n_fft}-{config.padding}-{config.window}")
def test_values_and_gradients_equal_float64(config: MelConfig) -> None:
    batch = _Batch(config, LENGTHS)
    exact = batch.on_cpu(batch.float64)
    expected = backend_torch.forward(exact, batch.total_frames)
    expected_grad = backend_torch.backward(exact, batch.grad)
    call, grad = batch.on_gpu(batch.float64.float()), batch.grad.float().cuda()
    backend_cuda.forward(call, batch.total_frames)  # uploads the tables
    with _no_host_sync():
        actual = backend_cuda.forward(call, batch.total_frames)
        gradient = backend_cuda.backward(call, grad)
    assert _rms_ratio(actual, expected) < 1e-5
    if config.log != "none":
        reference = backend_torch.forward(batch.on_cpu(batch.float64.float()), batch.total_frames)
        worst = (reference.double() - expected).abs().max()
        assert (actual.double().cpu() - expected).abs().max() <= 2 * worst + 1e-4
    assert _rms_ratio(gradient, expected_grad) < 1e-3

    from_int16 = backend_cuda.forward(batch.on_gpu(batch.int16), batch.total_frames)
    assert torch.equal(from_int16, actual)
    for _ in range(3):
        assert torch.equal(backend_cuda.backward(call, grad), gradient)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["slap", "whisper", "nemo", "kaldi"])
def test_frames_equal_the_oracle(name: str) -> None:
    config = MelConfig.preset(name)
    batch = _Batch(config, [4_000, 170, 1_600])
    frames = backend_cuda.forward(batch.on_gpu(batch.int16), batch.total_frames)
    clips = [batch.int16[begin:end].numpy() for begin, end in pairwise(batch.cu_seqlens.tolist())]
    expected = np.concatenate([oracle.local_log_mel(clip, config) for clip in clips])
    if config.is_local:
        expected = (expected - config.mean) / config.std
    np.testing.assert_allclose(frames.double().cpu().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS[:8], ids=lambda config: f"{config.n_fft}-{config.padding}")
def test_a_clip_has_the_same_bits_alone_and_in_a_batch(config: MelConfig) -> None:
    batch = _Batch(config, LENGTHS)
    call, grad = batch.on_gpu(batch.float64.float()), batch.grad.float().cuda()
    together = backend_cuda.forward(call, batch.total_frames)
    gradients = backend_cuda.backward(call, grad)
    samples, frames = batch.cu_seqlens.tolist(), batch.cu_frames.tolist()
    for clip in range(len(LENGTHS)):
        own = slice(samples[clip], samples[clip + 1])
        own_frames = slice(frames[clip], frames[clip + 1])
        count = frames[clip + 1] - frames[clip]
        own_offsets = _offsets([LENGTHS[clip]]).cuda(), _offsets([count]).cuda()
        own_call = LogMelCall(call.waveform[own].clone(), *own_offsets, batch.config)
        assert torch.equal(backend_cuda.forward(own_call, count), together[own_frames])
        assert torch.equal(backend_cuda.backward(own_call, grad[own_frames].clone()), gradients[own])


@pytest.mark.gpu
def test_a_cuda_graph_replays_on_new_samples_and_lengths() -> None:
    config = MelConfig()
    first, second = _Batch(config, [16_000, 8_000], seed=1), _Batch(config, [8_000, 16_000], seed=2)
    call, grad = first.on_gpu(first.float64.float()), first.grad.float().cuda()
    backend_cuda.forward(call, first.total_frames)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        frames = backend_cuda.forward(call, first.total_frames)
        gradient = backend_cuda.backward(call, grad)
    for held, new in zip(call[:3], second.on_gpu(second.float64.float())[:3], strict=True):
        held.copy_(new)
    grad.copy_(second.grad.float())
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(frames, backend_cuda.forward(call, first.total_frames))
    assert torch.equal(gradient, backend_cuda.backward(call, grad))


@pytest.mark.gpu
def test_nan_reaches_the_frames_that_hold_it_and_no_others() -> None:
    config = MelConfig()
    batch = _Batch(config, [16_000])
    waveform = batch.float64.float()
    waveform[8_000] = float("nan")
    call = batch.on_gpu(waveform)
    frames = backend_cuda.forward(call, batch.total_frames).cpu()
    starts = torch.arange(batch.total_frames) * config.hop_length
    sees = (starts <= 8_000) & (starts + config.win_length > 8_000)
    assert torch.equal(frames.isnan(), sees[:, None].expand_as(frames))
    gradient = backend_cuda.backward(call, batch.grad.float().cuda()).cpu()
    touched = torch.zeros(16_000, dtype=torch.bool)
    for start in starts[sees].tolist():
        touched[start : start + config.win_length] = True
    assert torch.equal(gradient.isnan(), touched)


@pytest.mark.gpu
def test_malformed_offsets_write_nothing_outside_the_outputs() -> None:
    config = MelConfig()
    batch = _Batch(config, [2_000, 3_000])
    call, grad = batch.on_gpu(batch.float64.float()), batch.grad.float().cuda()
    plan, stream = backend_cuda._plan(batch.config, call.waveform.device.index), torch.cuda.current_stream().cuda_stream
    far = 2**62
    for bad in ([0, far, 5_000], [0, 4_000, 2_000], [-far, -1, far], [5_000, 0, 0]):
        offsets = torch.tensor(bad).cuda()
        for malformed in (call._replace(cu_frames=offsets), call._replace(cu_seqlens=offsets)):
            mels, gradient = Guarded(torch.zeros_like(grad)), Guarded(torch.zeros_like(call.waveform))
            arguments = {**clip_arguments(malformed, batch.total_frames), "stream": stream}
            plan.forward(**arguments, mels=mels.tensor.data_ptr())
            plan.backward(**arguments, grad_mels=grad.data_ptr(), grad_waveform=gradient.tensor.data_ptr())
            mels.assert_untouched_around()
            gradient.assert_untouched_around()
            # The public path too, of both kinds of samples.
            for samples in (malformed, malformed._replace(waveform=batch.int16.cuda())):
                assert backend_cuda.forward(samples, batch.total_frames).shape == grad.shape
            assert backend_cuda.backward(malformed, grad).shape == call.waveform.shape
    torch.cuda.synchronize()
