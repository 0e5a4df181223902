"""CUDA backend of the native module: float32 and int16 samples in GPU memory, one fused pass on the current stream.

The first call of a convention on a GPU uploads its tables; a CUDA graph can capture the calls after it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel.backend_native import clip_arguments, plan_arguments
from slap_fast.ops.log_mel.call import LogMelCall
from slap_fast.ops.log_mel.config import MelConfig

# A longer frame may not fit into the shared memory of a block on the smaller GPUs.
_MAX_N_FFT = 4096


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    reason = native.unavailable()
    if reason is not None:
        return reason
    module = native.load()
    if not hasattr(module, "CudaLogMel"):
        return (
            "the native module is built without CUDA: put nvcc on PATH, set SLAP_FAST_CUDA=1, and reinstall slap-fast"
        )
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    assert module is not None
    reason = module.cuda_unavailable()
    return f"no usable GPU: {reason}" if reason else None


def rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    """Why the kernels cannot serve samples of `dtype` on `device` with `config`; None if they can."""
    if device.type != "cuda":
        return f"the waveform is on {device}; CUDA kernels read GPU memory"
    if dtype not in (torch.float32, torch.int16):
        return f"the waveform is {dtype}; the CUDA kernels take float32 and int16"
    if config.n_fft > _MAX_N_FFT:
        return f"n_fft is {config.n_fft}; the CUDA kernels take up to {_MAX_N_FFT}"
    return None


# Never evicted: a captured graph holds the addresses of the tables.
@functools.cache
def _plan(config: str, device: int) -> Any:
    return native.require().CudaLogMel(device=device, **plan_arguments(MelConfig.parse(config)))


def _stream(waveform: Tensor) -> int:
    return torch.cuda.current_stream(waveform.device).cuda_stream


def forward(call: LogMelCall, total_frames: int) -> Tensor:
    """See `Backend.forward`."""
    waveform = call.waveform
    mels = waveform.new_empty(total_frames, call.mel.n_mels, dtype=torch.float32)
    _plan(call.config, waveform.device.index).forward(
        **clip_arguments(call, total_frames), stream=_stream(waveform), mels=mels.data_ptr()
    )
    return mels


def backward(call: LogMelCall, grad: Tensor) -> Tensor:
    """See `Backend.backward`."""
    waveform = call.waveform
    grad_waveform = torch.empty_like(waveform)
    _plan(call.config, waveform.device.index).backward(
        **clip_arguments(call, grad.shape[0]),
        stream=_stream(waveform),
        grad_mels=grad.data_ptr(),
        grad_waveform=grad_waveform.data_ptr(),
    )
    return grad_waveform
