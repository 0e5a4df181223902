"""Native backend, CPU: float32 and int16 samples, patches written in the pass that computes the frames."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.log_mel import backend_native
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patches.call import PatchesCall

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    """Why native code cannot serve samples of `dtype` on `device` with `config`; None if it can."""
    if not config.is_local:
        return "the convention normalizes over the clip, after all of its frames"
    return backend_native.rejects(device=device, dtype=dtype, config=config)


def patches(call: PatchesCall) -> Tensor:
    """See `Backend.patches`."""
    clips, config = backend_native.aligned_call(call.clips), call.mel
    tokens = call.columns * (config.n_mels // call.patch_mels)
    out = torch.empty(tokens, call.patch_frames * call.patch_mels, dtype=torch.float32, device="cpu")
    backend_native.plan(call.config).patches(
        **backend_native.clip_arguments(clips, call.total_frames),
        threads=torch.get_num_threads(),
        patch_frames=call.patch_frames,
        patch_mels=call.patch_mels,
        padding=config.normalized_floor,
        mask_value=call.mask_value,
        time_masked=0 if call.time_masked is None else call.time_masked.data_ptr(),
        mel_masked=0 if call.mel_masked is None else call.mel_masked.data_ptr(),
        patches=out.data_ptr(),
        tokens=tokens,
    )
    return out
