"""Native backend, CPU: float32 and int16 samples, patches written in the pass that computes the frames."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel import backend_native as frames
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patches.call import PatchesCall

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    """Why native code cannot serve samples of `dtype` on `device` with `config`; None if it can."""
    if not config.is_local:
        return "the convention normalizes over the clip, after all of its frames"
    return frames.rejects(device=device, dtype=dtype, config=config)


def patches(call: PatchesCall) -> Tensor:
    """See `Backend.patches`."""
    clips, config = frames.aligned_call(call.clips), call.mel
    tokens = call.columns * (config.n_mels // call.patch_mels)
    patches = torch.empty(tokens, call.patch_frames * call.patch_mels, dtype=torch.float32, device="cpu")
    frames.plan(call.config).patches(
        **frames.clip_arguments(clips, call.total_frames),
        threads=torch.get_num_threads(),
        patch_frames=call.patch_frames,
        patch_mels=call.patch_mels,
        padding=config.normalized_floor,
        mask_value=call.mask_value,
        time_masked=0 if call.time_masked is None else call.time_masked.data_ptr(),
        mel_masked=0 if call.mel_masked is None else call.mel_masked.data_ptr(),
        patches=patches.data_ptr(),
        tokens=tokens,
    )
    return patches
