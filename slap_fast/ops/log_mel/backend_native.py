"""Log-mel by the native module: float32 and 16-bit samples in CPU memory, fused, on all of torch's threads."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patchify import PatchGrid
from slap_fast.ops.log_mel.tables import mel_filters, window
from slap_fast.ops.tensor_checks import aligned


def rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    """Why native code cannot serve samples of `dtype` on `device`, None if it can; it takes every convention."""
    if device.type != "cpu":
        return f"the waveform is on {device}; native code reads CPU memory"
    if dtype not in (torch.float32, torch.int16):
        return f"the waveform is {dtype}; native code takes float32 and int16"
    return None


@functools.lru_cache(maxsize=32)
def _plan(config: MelConfig) -> Any:
    """The native object that holds a convention's tables."""
    return native.require().LogMel(**plan_arguments(config))


def plan_arguments(config: MelConfig) -> dict[str, Any]:
    """A convention as the plain numbers and float32 tables of csrc/log_mel_spec.h."""
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


def _packed(waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, total_frames: int) -> dict[str, Any]:
    return {
        "waveform": waveform.data_ptr(),
        "int16": waveform.dtype == torch.int16,
        "samples": waveform.numel(),
        "cu_seqlens": cu_seqlens.data_ptr(),
        "cu_frames": cu_frames.data_ptr(),
        "clips": cu_seqlens.numel() - 1,
        "frames": total_frames,
        "threads": torch.get_num_threads(),
    }


def forward(waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: MelConfig, total_frames: int) -> Tensor:
    """`[S]` float32 or int16 samples to `[F, n_mels]` float32, before what needs the clip as a whole."""
    waveform = aligned(waveform)
    mels = torch.empty(total_frames, config.n_mels, dtype=torch.float32, device="cpu")
    _plan(config).forward(**_packed(waveform, cu_seqlens, cu_frames, total_frames), mels=mels.data_ptr())
    return mels


def backward(grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: MelConfig) -> Tensor:
    """`[F, n_mels]` gradients to `[S]`."""
    waveform, grad = aligned(waveform), aligned(grad)
    grad_waveform = torch.empty_like(waveform)
    _plan(config).backward(
        **_packed(waveform, cu_seqlens, cu_frames, grad.shape[0]),
        grad_mels=grad.data_ptr(),
        grad_waveform=grad_waveform.data_ptr(),
    )
    return grad_waveform


def patches(
    waveform: Tensor,
    cu_seqlens: Tensor,
    grid: PatchGrid,
    time_masked: Tensor | None,
    mel_masked: Tensor | None,
    config: MelConfig,
    mask_value: float,
) -> Tensor:
    """`[S]` samples to `[T, patch_frames * patch_mels]` float32 of a local convention, masked."""
    waveform = aligned(waveform)
    tokens = grid.columns * (config.n_mels // grid.patch_mels)
    patches = torch.empty(tokens, grid.patch_frames * grid.patch_mels, dtype=torch.float32, device="cpu")
    _plan(config).patches(
        **_packed(waveform, cu_seqlens, grid.cu_frames, grid.total_frames),
        patch_frames=grid.patch_frames,
        patch_mels=grid.patch_mels,
        padding=config.normalized_floor,
        mask_value=mask_value,
        time_masked=0 if time_masked is None else time_masked.data_ptr(),
        mel_masked=0 if mel_masked is None else mel_masked.data_ptr(),
        patches=patches.data_ptr(),
        tokens=tokens,
    )
    return patches
