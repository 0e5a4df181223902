"""PyTorch backend, any device: `log_mel` by the backend that serves it, then masks and patches by PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patches.call import PatchesCall
from slap_fast.ops.packed import item_of_each


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def patches(call: PatchesCall, config: MelConfig) -> Tensor:
    """`[T, patch_frames * patch_mels]` of the dtype of the frames, differentiable."""
    frames = log_mel(call.waveform, call.cu_seqlens, config, total_frames=call.total_frames)
    return _patchify(_masked(frames, call, call.mask_value), call, config.normalized_floor)


def patchify_backward(grad: Tensor, call: PatchesCall) -> Tensor:
    """`[F, n_mels]` gradient of the frames from the contiguous `[T, patch_frames * patch_mels]` one of the patches."""
    n_mels = call.mel.n_mels
    columns = grad.view(call.columns, n_mels // call.patch_mels, call.patch_frames, call.patch_mels)
    padded = columns.transpose(1, 2).reshape(call.columns * call.patch_frames, n_mels)
    clip = item_of_each(call.cu_frames, call.total_frames)
    index = torch.arange(call.total_frames, device=grad.device) - call.cu_frames[clip]
    frames = padded[_cu_columns(call)[clip] * call.patch_frames + index]
    return _masked(frames, call, 0.0).contiguous()


def _patchify(frames: Tensor, call: PatchesCall, padding: float) -> Tensor:
    """`[F, n_mels]` frames to patches; `padding` fills up the last column of each clip."""
    if call.total_frames == 0:
        return frames.reshape(0, call.patch_frames * call.patch_mels)  # keeps the graph to the waveform
    cu_columns = _cu_columns(call)
    clip = item_of_each(cu_columns, call.columns)
    column = torch.arange(call.columns, device=frames.device) - cu_columns[clip]
    first = call.cu_frames[clip] + column * call.patch_frames
    position = first[:, None] + torch.arange(call.patch_frames, device=frames.device)  # [C, patch_frames]
    inside = position < call.cu_frames[clip + 1][:, None]
    gathered = frames[position.clamp_max(call.total_frames - 1)]  # [C, patch_frames, n_mels]
    gathered = torch.where(inside[:, :, None], gathered, padding)
    rows = frames.shape[1] // call.patch_mels
    return gathered.unflatten(2, (rows, call.patch_mels)).transpose(1, 2).flatten(2).flatten(0, 1)


def _masked(frames: Tensor, call: PatchesCall, value: float) -> Tensor:
    """`[F, n_mels]` frames with `value` where they are masked."""
    if call.time_masked is not None:
        frames = frames.masked_fill(call.time_masked[:, None], value)
    if call.mel_masked is not None:
        frames = frames.masked_fill(call.mel_masked[item_of_each(call.cu_frames, frames.shape[0])], value)
    return frames


def _cu_columns(call: PatchesCall) -> Tensor:
    """`[N + 1]` int64 column offsets of the clips."""
    counts = (call.cu_frames.diff() + call.patch_frames - 1) // call.patch_frames
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
