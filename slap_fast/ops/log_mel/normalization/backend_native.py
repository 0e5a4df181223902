"""Native backend, CPU: float32, on all of torch's threads. Its backward is PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel.normalization import backend_torch
from slap_fast.ops.log_mel.normalization.call import NormalizationCall
from slap_fast.ops.tensor_checks import aligned

unavailable = native.unavailable
backward = backend_torch.backward


def rejects(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why native code cannot serve frames of `dtype` on `device`; None if it can."""
    if device.type != "cpu":
        return f"the frames are on {device}; native code reads CPU memory"
    return None if dtype == torch.float32 else f"the frames are {dtype}; native code takes float32"


def forward(call: NormalizationCall) -> Tensor:
    """See `Backend.forward`."""
    frames, config = aligned(call.frames), call.mel
    normalized = torch.empty_like(frames)
    native.require().normalize_mels(
        frames=frames.data_ptr(),
        total=frames.shape[0],
        n_mels=frames.shape[1],
        cu_frames=call.cu_frames.data_ptr(),
        clips=call.cu_frames.shape[0] - 1,
        dynamic_range=config.dynamic_range,
        deviation_guard=backend_torch.DEVIATION_GUARD if config.normalize_per_clip else None,
        mean=config.mean,
        deviation=config.std,
        normalized=normalized.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return normalized
