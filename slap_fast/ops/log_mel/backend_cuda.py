"""Log-mel by the native module's CUDA kernels: float32 and 16-bit samples in GPU memory, fused, on the current stream.

The first call of a convention on a GPU uploads its tables; a CUDA graph can capture those that follow.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel.backend_native import plan_arguments
from slap_fast.ops.log_mel.config import MelConfig

# A frame of more samples may not fit into the shared memory of a block on the smaller GPUs.
LARGEST_N_FFT = 4096


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    reason = native.unavailable()
    if reason is not None:
        return reason
    module = native.load()
    if not hasattr(module, "CudaLogMel"):
        return "the native module is built without CUDA: put nvcc on PATH and reinstall slap-fast"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    assert module is not None
    reason = module.cuda_unavailable()
    return f"no usable GPU: {reason}" if reason else None


def rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    """Why the kernels cannot serve samples of `dtype` on `device` with `config`, None if they can."""
    if device.type != "cuda":
        return f"the waveform is on {device}; CUDA kernels read GPU memory"
    if dtype not in (torch.float32, torch.int16):
        return f"the waveform is {dtype}; the CUDA kernels take float32 and int16"
    if config.n_fft > LARGEST_N_FFT:
        return f"n_fft is {config.n_fft}; the CUDA kernels take up to {LARGEST_N_FFT}"
    return None


# Never dropped: a captured graph holds the addresses of the tables.
@functools.cache
def _plan(config: MelConfig, device: int) -> Any:
    return native.require().CudaLogMel(device=device, **plan_arguments(config))


def _packed(waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, total_frames: int) -> dict[str, Any]:
    return {
        "waveform": waveform.data_ptr(),
        "int16": waveform.dtype == torch.int16,
        "samples": waveform.numel(),
        "cu_seqlens": cu_seqlens.data_ptr(),
        "cu_frames": cu_frames.data_ptr(),
        "clips": cu_seqlens.numel() - 1,
        "frames": total_frames,
        "stream": torch.cuda.current_stream(waveform.device).cuda_stream,
    }


def forward(waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: MelConfig, total_frames: int) -> Tensor:
    """`[S]` float32 or int16 samples to `[F, n_mels]` float32, before what needs the clip as a whole."""
    mels = waveform.new_empty(total_frames, config.n_mels, dtype=torch.float32)
    _plan(config, waveform.device.index).forward(
        **_packed(waveform, cu_seqlens, cu_frames, total_frames), mels=mels.data_ptr()
    )
    return mels


def backward(grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: MelConfig) -> Tensor:
    """`[F, n_mels]` gradients to `[S]`, float32."""
    grad_waveform = torch.empty_like(waveform)
    _plan(config, waveform.device.index).backward(
        **_packed(waveform, cu_seqlens, cu_frames, grad.shape[0]),
        grad_mels=grad.data_ptr(),
        grad_waveform=grad_waveform.data_ptr(),
    )
    return grad_waveform
