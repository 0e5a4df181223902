"""Arguments of `normalize_clips`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.tensor_checks import require_like


class NormalizationCall(NamedTuple):
    """Arguments of the registered ops and of every backend.

    Attributes:
        frames: `[F, n_mels]` float32 or float64, contiguous.
        cu_frames: `[N + 1]` int64 frame offsets of the clips, contiguous.
        config: `MelConfig.serialized`: a schema takes no dataclass.
    """

    frames: Tensor
    cu_frames: Tensor
    config: str

    @property
    def mel(self) -> MelConfig:
        return MelConfig.parse(self.config)


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated, except offsets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def forward(self, call: NormalizationCall) -> Tensor:
        """The normalized frames, `[F, n_mels]` of their dtype."""

    def backward(self, call: NormalizationCall, grad: Tensor) -> Tensor:
        """The gradient of the frames from the contiguous gradient of what `forward` returned."""


def validate(call: NormalizationCall, config: MelConfig) -> NormalizationCall:
    """The call with contiguous tensors and int64 offsets; raises the ValueErrors of `normalize_clips`.

    `config` is `call.mel`, which a compiler does not trace.
    """
    frames, cu_frames, _ = call
    if frames.dim() != 2 or frames.shape[1] != config.n_mels or frames.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"frames is {frames.dtype} of shape {tuple(frames.shape)}; pass [F, {config.n_mels}] float32 or float64"
        )
    offsets = checked_offsets("cu_frames", cu_frames, frames.shape[0], frames.device, torch.int64, of="frames")
    if offsets is cu_frames and cu_frames.is_contiguous() and frames.is_contiguous():
        return call
    return NormalizationCall(frames.contiguous(), offsets.contiguous(), call.config)


def select(call: NormalizationCall, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("mel_normalization", requested, device=call.frames.device, dtype=call.frames.dtype)


def check(call: NormalizationCall, backend: str) -> tuple[NormalizationCall, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    call = validate(call, call.mel)
    return call, select(call, backend)


def check_backward(call: NormalizationCall, grad: Tensor, backend: str) -> tuple[NormalizationCall, Tensor, str]:
    """As `check`, for the backward op."""
    require_like("grad", grad, call.frames)
    call, chosen = check(call, backend)
    return call, grad.contiguous(), chosen
