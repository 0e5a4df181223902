"""Packed waveforms to log-mel patches in token order, with SpecAugment masks: the input of an audio encoder.

    patches = log_mel_patches(waveform, cu_seqlens, MelConfig())    # [S] -> [T, 16 * 16]

The values of `log_mel`, masked and cut into patches. On a CPU native code writes patches directly from samples, in the
pass that computes the frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.log_mel import log_mel_backward
from slap_fast.ops.log_mel.call import frame_offsets, require_samples
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patches import backend_native, backend_torch
from slap_fast.ops.log_mel.patches.call import (
    Backend,
    PatchesCall,
    check,
    checked_masks,
    require_patch,
    select,
    total_columns,
)

# Backends of the registered op. PyTorch's is not a registered op: it is `log_mel` and operations that autograd
# differentiates.
BACKENDS: dict[str, Backend] = {"native": backend_native}
dispatch.register(
    "log_mel_patches",
    [
        *(dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()),
        dispatch.Backend("torch", backend_torch.unavailable, backend_torch.rejects),
    ],
)


@custom_op("slap_fast::log_mel_patches", check=check, rule=autocast.full)
def _log_mel_patches(call: PatchesCall) -> Tensor:
    return BACKENDS["native"].patches(call)


@_log_mel_patches.register_fake
def _(call: PatchesCall) -> Tensor:
    tokens = call.columns * (call.mel.n_mels // call.patch_mels)
    return call.waveform.new_empty(tokens, call.patch_frames * call.patch_mels, dtype=torch.float32)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[PatchesCall], output: Tensor) -> None:
    ctx.settings = inputs[0][5:]  # type: ignore[attr-defined]
    ctx.save_for_backward(*inputs[0][:5])  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    call = PatchesCall(*ctx.saved_tensors, *ctx.settings)  # type: ignore[attr-defined]
    grad_frames = backend_torch.patchify_backward(grad.contiguous(), call)
    return log_mel_backward(call.clips, grad_frames, "native"), *(None,) * 10


_log_mel_patches.register_autograd(_backward, setup_context=_setup_context)


def log_mel_patches(
    waveform: Tensor,
    cu_seqlens: Tensor,
    config: MelConfig,
    *,
    patch_frames: int = 16,
    patch_mels: int = 16,
    time_masked: Tensor | None = None,
    mel_masked: Tensor | None = None,
    mask_value: float = 0.0,
    total_frames: int | None = None,
    total_tokens: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-mel patches of packed clips, differentiable with respect to the waveform.

    Args:
        waveform: `[S]` float32 or float64 samples in [-1, 1], or int16, of packed clips.
        cu_seqlens: `[N + 1]` int64 or int32 offsets of the clips on the same device, from 0 to S.
        config: the convention.
        patch_frames: frames of a patch.
        patch_mels: mel bins of a patch; divides `config.n_mels`.
        time_masked: `[F]` bool, True where a frame is masked (SpecAugment, arXiv 1904.08779).
        mel_masked: `[N, n_mels]` bool, True where a mel bin of a clip is masked.
        mask_value: replaces masked values; 0 is the mean of normalized frames.
        total_frames: the sum of `config.num_frames(length)`; see `log_mel`.
        total_tokens: length of the result. On a GPU both totals save a wait for the device, and
            `torch.compile(fullgraph=True)` needs both.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `[T, patch_frames * patch_mels]`, `ceil(frames / patch_frames) * n_mels / patch_mels` tokens for each clip.
        Tokens of one column in time are adjacent, lowest frequency first; the values of a token run over time, then
        over mel bins (SLAP, section 3). Frames that fill up the last column of a clip are `config.normalized_floor`.

    Raises:
        ValueError: as `log_mel`; or masks of another shape or dtype, a patch that does not divide `n_mels`, or a
            `total_tokens` that does not fit.
    """
    (waveform,) = autocast.cast(autocast.full, waveform)
    require_samples(waveform)
    require_patch(patch_frames, patch_mels, config)
    cu_seqlens, cu_frames, total_frames = frame_offsets(waveform, cu_seqlens, config, total_frames)
    masks = checked_masks(time_masked, mel_masked, total_frames, cu_seqlens, config)
    columns = total_columns(cu_frames, config.n_mels // patch_mels, patch_frames, total_tokens)
    chosen = select(waveform, config, backend)
    call = PatchesCall(
        waveform.contiguous(),
        cu_seqlens.contiguous(),
        cu_frames,
        *masks,
        config.serialized,
        total_frames,
        columns,
        patch_frames,
        patch_mels,
        mask_value,
    )
    # An exported program may run anywhere: "auto" stays "auto" while it is traced.
    return backend_torch.patches(call, config) if chosen in ("torch", "auto") else _log_mel_patches(call)
