"""Arguments of `log_mel_patches`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.log_mel.call import LogMelCall
from slap_fast.ops.log_mel.call import validate as validate_clips
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.tensor_checks import require


class PatchesCall(NamedTuple):
    """Arguments of the registered op and of every backend.

    A clip has `ceil(frames / patch_frames)` columns of `n_mels / patch_mels` tokens. Tokens of one column are adjacent,
    lowest frequency first. The values of a token run over time, then over mel bins.

    Attributes:
        waveform: `[S]` samples of N clips end to end, contiguous.
        cu_seqlens: `[N + 1]` int64 sample offsets of the clips, contiguous.
        cu_frames: `[N + 1]` int64 frame offsets of the clips, contiguous.
        time_masked: `[F]` bool, contiguous, or None.
        mel_masked: `[N, n_mels]` bool, contiguous, or None.
        config: `MelConfig.serialized`: a schema takes no dataclass.
        total_frames: F, frames of all clips.
        columns: columns of all clips.
        patch_frames: frames of a patch.
        patch_mels: mel bins of a patch.
        mask_value: replaces masked values.
    """

    waveform: Tensor
    cu_seqlens: Tensor
    cu_frames: Tensor
    time_masked: Tensor | None
    mel_masked: Tensor | None
    config: str
    total_frames: int
    columns: int
    patch_frames: int
    patch_mels: int
    mask_value: float

    @property
    def mel(self) -> MelConfig:
        return MelConfig.parse(self.config)

    @property
    def clips(self) -> LogMelCall:
        return LogMelCall(self.waveform, self.cu_seqlens, self.cu_frames, self.config)


class Backend(Protocol):
    """A backend module of the registered op. Importing it must be cheap. Arguments are validated."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def patches(self, call: PatchesCall) -> Tensor:
        """`[T, patch_frames * patch_mels]` float32, masked."""


def select(waveform: Tensor, config: MelConfig, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("log_mel_patches", requested, device=waveform.device, dtype=waveform.dtype, config=config)


def require_patch(patch_frames: int, patch_mels: int, config: MelConfig) -> None:
    """Raise ValueError unless patches of that size divide the mel bins."""
    if patch_frames < 1 or patch_mels < 1 or config.n_mels % patch_mels:
        raise ValueError(
            f"a patch of {patch_frames} frames x {patch_mels} mel bins does not divide {config.n_mels} mel bins"
        )


def checked_masks(
    time_masked: Tensor | None, mel_masked: Tensor | None, total_frames: int, cu_seqlens: Tensor, config: MelConfig
) -> tuple[Tensor | None, Tensor | None]:
    """Both masks, contiguous; raises ValueError for another shape, dtype or device."""
    shapes = {"time_masked": (total_frames,), "mel_masked": (cu_seqlens.shape[0] - 1, config.n_mels)}
    for mask, (name, shape) in zip((time_masked, mel_masked), shapes.items(), strict=True):
        if mask is not None:
            require(name, mask, shape, torch.bool, cu_seqlens.device)
    time_masked, mel_masked = (None if mask is None else mask.contiguous() for mask in (time_masked, mel_masked))
    return time_masked, mel_masked


def total_columns(cu_frames: Tensor, rows: int, patch_frames: int, total_tokens: int | None) -> int:
    """Columns of all clips, `rows` tokens each.

    Raises:
        ValueError: `total_tokens` does not fit, or is None under `torch.compile`.
    """
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


def validate(call: PatchesCall) -> PatchesCall:
    """The call with contiguous tensors and int64 offsets; raises ValueError for what native code would misread."""
    config = call.mel
    waveform, cu_seqlens, cu_frames, _ = validate_clips(call.clips, call.total_frames)
    require_patch(call.patch_frames, call.patch_mels, config)
    time_masked, mel_masked = checked_masks(call.time_masked, call.mel_masked, call.total_frames, cu_seqlens, config)
    rows = config.n_mels // call.patch_mels
    total_columns(cu_frames, rows, call.patch_frames, call.columns * rows)
    return call._replace(
        waveform=waveform, cu_seqlens=cu_seqlens, cu_frames=cu_frames, time_masked=time_masked, mel_masked=mel_masked
    )


def check(call: PatchesCall) -> tuple[PatchesCall]:
    """Arguments of the registered op, validated; raises ValueError."""
    call = validate(call)
    select(call.waveform, call.mel, "native")
    return (call,)
