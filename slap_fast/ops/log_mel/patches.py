"""Packed waveforms to log-mel patches in token order, with SpecAugment's masks: what an audio encoder reads.

    patches = log_mel_patches(waveform, cu_seqlens, MelConfig())    # [S] -> [T, 16 * 16]

The same values as `log_mel`, blanked where masks say so and cut into patches. On a CPU, native code writes the patches
straight from the samples, in the same pass as the frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.log_mel import backend_native as log_mel_native
from slap_fast.ops.log_mel import check_packed, frame_offsets, log_mel, require_samples
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patchify import PatchGrid, patchify, unpatchify
from slap_fast.ops.packed import item_of_each
from slap_fast.ops.tensor_checks import require


def _check(
    waveform: Tensor,
    cu_seqlens: Tensor,
    cu_frames: Tensor,
    time_masked: Tensor | None,
    mel_masked: Tensor | None,
    config: str,
    total_frames: int,
    columns: int,
    patch_frames: int,
    patch_mels: int,
    mask_value: float,
) -> tuple:
    convention = MelConfig.parse(config)
    waveform, cu_seqlens, cu_frames = check_packed(waveform, cu_seqlens, cu_frames, convention, total_frames)
    dispatch.select("log_mel_patches", "native", device=waveform.device, dtype=waveform.dtype, config=convention)
    _require_patch(patch_frames, patch_mels, convention)
    masks = _checked_masks(time_masked, mel_masked, total_frames, cu_seqlens, convention)
    rows = convention.n_mels // patch_mels
    _total_columns(cu_frames, rows, patch_frames, columns * rows)
    settings = config, total_frames, columns, patch_frames, patch_mels, mask_value
    return waveform, cu_seqlens, cu_frames, *masks, *settings


def _require_patch(patch_frames: int, patch_mels: int, config: MelConfig) -> None:
    if patch_frames < 1 or patch_mels < 1 or config.n_mels % patch_mels:
        raise ValueError(
            f"a patch of {patch_frames} frames x {patch_mels} mel bins does not divide {config.n_mels} mel bins"
        )


def _checked_masks(
    time_masked: Tensor | None, mel_masked: Tensor | None, total_frames: int, cu_seqlens: Tensor, config: MelConfig
) -> list[Tensor | None]:
    shapes = {"time_masked": (total_frames,), "mel_masked": (cu_seqlens.shape[0] - 1, config.n_mels)}
    for mask, (name, shape) in zip((time_masked, mel_masked), shapes.items(), strict=True):
        if mask is not None:
            require(name, mask, shape, torch.bool, cu_seqlens.device)
    return [None if mask is None else mask.contiguous() for mask in (time_masked, mel_masked)]


@custom_op("slap_fast::log_mel_patches", check=_check, rule=autocast.full)
def _log_mel_patches(
    waveform: Tensor,
    cu_seqlens: Tensor,
    cu_frames: Tensor,
    time_masked: Tensor | None,
    mel_masked: Tensor | None,
    config: str,
    total_frames: int,
    columns: int,
    patch_frames: int,
    patch_mels: int,
    mask_value: float,
) -> Tensor:
    grid = PatchGrid(cu_frames, total_frames, columns, patch_frames, patch_mels)
    return log_mel_native.patches(
        waveform, cu_seqlens, grid, time_masked, mel_masked, MelConfig.parse(config), mask_value
    )


@_log_mel_patches.register_fake
def _(
    waveform: Tensor,
    cu_seqlens: Tensor,
    cu_frames: Tensor,
    time_masked: Tensor | None,
    mel_masked: Tensor | None,
    config: str,
    total_frames: int,
    columns: int,
    patch_frames: int,
    patch_mels: int,
    mask_value: float,
) -> Tensor:
    tokens = columns * (MelConfig.parse(config).n_mels // patch_mels)
    return waveform.new_empty(tokens, patch_frames * patch_mels, dtype=torch.float32)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    waveform, cu_seqlens, cu_frames, time_masked, mel_masked, ctx.config, *ctx.grid, _ = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(waveform, cu_seqlens, cu_frames, time_masked, mel_masked)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    waveform, cu_seqlens, cu_frames, time_masked, mel_masked = ctx.saved_tensors  # type: ignore[attr-defined]
    grid = PatchGrid(cu_frames, *ctx.grid)  # type: ignore[attr-defined]
    n_mels = MelConfig.parse(ctx.config).n_mels  # type: ignore[attr-defined]
    frames = _blank(unpatchify(grad.contiguous(), grid, n_mels), cu_frames, time_masked, mel_masked, 0.0).contiguous()
    grad = torch.ops.slap_fast.log_mel_backward(frames, waveform, cu_seqlens, cu_frames, ctx.config, "native")  # type: ignore[attr-defined]
    return grad, *(None,) * 10


_log_mel_patches.register_autograd(_backward, setup_context=_setup_context)


def _rejects(*, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
    if not config.is_local:
        return "the convention normalises by clip, after all of its frames"
    return log_mel_native.rejects(device=device, dtype=dtype, config=config)


dispatch.register(
    "log_mel_patches",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=_rejects),
        dispatch.Backend("torch"),  # log_mel by the backend that serves it, then PyTorch
    ],
)


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
        time_masked: `[F]` bool, True where a frame is blanked (SpecAugment, arXiv 1904.08779).
        mel_masked: `[N, n_mels]` bool, True where a mel bin of a clip is blanked.
        mask_value: what blanked values become; 0 is the mean of normalised frames.
        total_frames: the sum of `config.num_frames(length)`; see `log_mel`.
        total_tokens: the length of the result. Like `total_frames` it spares a GPU call a wait, and
            `torch.compile(fullgraph=True)` needs both.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[T, patch_frames * patch_mels]`: `ceil(frames / patch_frames) * n_mels / patch_mels` tokens of each clip. Those
        of one column in time stand together, lowest frequency first; a token's values run over time, then over mel
        bins. Frames that fill a clip's last column hold `config.normalized_floor`.

    Raises:
        ValueError: as `log_mel`; or masks of another shape or dtype, a patch that does not divide `n_mels`, or a
            `total_tokens` that does not fit.
    """
    (waveform,) = autocast.cast(autocast.full, waveform)
    require_samples(waveform)
    _require_patch(patch_frames, patch_mels, config)
    cu_seqlens, cu_frames, total_frames = frame_offsets(waveform, cu_seqlens, config, total_frames)
    time_masked, mel_masked = _checked_masks(time_masked, mel_masked, total_frames, cu_seqlens, config)
    columns = _total_columns(cu_frames, config.n_mels // patch_mels, patch_frames, total_tokens)
    grid = PatchGrid(cu_frames, total_frames, columns, patch_frames, patch_mels)
    chosen = dispatch.select("log_mel_patches", backend, device=waveform.device, dtype=waveform.dtype, config=config)
    if chosen in ("torch", "auto"):  # an exported program has what runs anywhere
        frames = log_mel(waveform, cu_seqlens, config, total_frames=total_frames)
        frames = _blank(frames, cu_frames, time_masked, mel_masked, mask_value)
        return patchify(frames, grid, padding=config.normalized_floor)
    return _log_mel_patches(
        waveform.contiguous(),
        cu_seqlens.contiguous(),
        cu_frames,
        time_masked,
        mel_masked,
        config.serialized,
        total_frames,
        columns,
        patch_frames,
        patch_mels,
        mask_value,
    )


def _total_columns(cu_frames: Tensor, rows: int, patch_frames: int, total_tokens: int | None) -> int:
    compiling = torch.compiler.is_compiling()
    if compiling and total_tokens is None:
        raise ValueError("log_mel_patches needs total_tokens under torch.compile")
    if not compiling and (total_tokens is None or cu_frames.device.type == "cpu"):
        expected = int(((cu_frames.diff() + patch_frames - 1) // patch_frames).sum()) * rows
        if total_tokens is not None and total_tokens != expected:
            raise ValueError(f"total_tokens is {total_tokens}, but the clips have {expected} tokens")
        total_tokens = expected
    assert total_tokens is not None
    return total_tokens // rows


def _blank(
    frames: Tensor, cu_frames: Tensor, time_masked: Tensor | None, mel_masked: Tensor | None, value: float
) -> Tensor:
    """`[F, n_mels]` frames with `value` where a mask says so."""
    if time_masked is not None:
        frames = frames.masked_fill(time_masked[:, None], value)
    if mel_masked is not None:
        frames = frames.masked_fill(mel_masked[item_of_each(cu_frames, frames.shape[0])], value)
    return frames
