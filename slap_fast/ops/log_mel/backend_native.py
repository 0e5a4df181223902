"""Native backend, CPU: float32 and int16 samples, one fused pass on all of torch's threads."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel.call import LogMelCall
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.tables import mel_filters, window
from slap_fast.ops.tensor_checks import aligned

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    """Why native code cannot serve samples of `dtype` on `device`; None if it can. It takes every convention."""
    if device.type != "cpu":
        return f"the waveform is on {device}; native code reads CPU memory"
    if dtype not in (torch.float32, torch.int16):
        return f"the waveform is {dtype}; native code takes float32 and int16"
    return None


# By `MelConfig.serialized`: a string keeps its hash, a dataclass computes it at every call.
@functools.lru_cache(maxsize=32)
def plan(config: str) -> Any:
    """The native object that holds the tables of a convention."""
    return native.require().LogMel(**plan_arguments(MelConfig.parse(config)))


def plan_arguments(config: MelConfig) -> dict[str, Any]:
    """A convention as the numbers and float32 tables of csrc/log_mel_spec.h, for the CPU and for CUDA."""
    logarithm = config.log != "none"
    scale, shift = (config.log_scale if logarithm else 1.0), 0.0
    if config.is_local:
        scale, shift = scale / config.std, -config.mean / config.std
    return {
        "n_fft": config.n_fft,
        "win_length": config.win_length,
        "hop_length": config.hop_length,
        "n_mels": config.n_mels,
        "first_sample": config.first_sample,
        "padding": "zeros" if config.padding == "none" else config.padding,
        "input_scale": config.input_scale,
        "remove_dc_offset": config.remove_dc_offset,
        "preemphasis": config.preemphasis,
        "preemphasis_over_clip": config.preemphasis_scope == "clip" and config.preemphasis > 0.0,
        "magnitude": config.power == 1.0,
        "power_guard": config.power_guard,
        "log_floor": config.log_floor,
        "log_guard": config.log_guard,
        "logarithm": logarithm,
        "log_scale": scale,
        "log_shift": shift,
        "window": np.ascontiguousarray(window(config), dtype=np.float32),
        "filters": np.ascontiguousarray(mel_filters(config), dtype=np.float32),
    }


def clip_arguments(call: LogMelCall, total_frames: int) -> dict[str, Any]:
    """The packed clips as addresses and sizes, for the CPU and for CUDA."""
    return {
        "waveform": call.waveform.data_ptr(),
        "int16": call.waveform.dtype == torch.int16,
        "samples": call.waveform.numel(),
        "cu_seqlens": call.cu_seqlens.data_ptr(),
        "cu_frames": call.cu_frames.data_ptr(),
        "clips": call.cu_seqlens.numel() - 1,
        "frames": total_frames,
    }


def forward(call: LogMelCall, total_frames: int) -> Tensor:
    """See `Backend.forward`."""
    call = aligned_call(call)
    mels = torch.empty(total_frames, call.mel.n_mels, dtype=torch.float32, device="cpu")
    plan(call.config).forward(
        **clip_arguments(call, total_frames), threads=torch.get_num_threads(), mels=mels.data_ptr()
    )
    return mels


def backward(call: LogMelCall, grad: Tensor) -> Tensor:
    """See `Backend.backward`."""
    call, grad = aligned_call(call), aligned(grad)
    grad_waveform = torch.empty_like(call.waveform)
    plan(call.config).backward(
        **clip_arguments(call, grad.shape[0]),
        threads=torch.get_num_threads(),
        grad_mels=grad.data_ptr(),
        grad_waveform=grad_waveform.data_ptr(),
    )
    return grad_waveform


def aligned_call(call: LogMelCall) -> LogMelCall:
    waveform = aligned(call.waveform)
    return call if waveform is call.waveform else call._replace(waveform=waveform)
