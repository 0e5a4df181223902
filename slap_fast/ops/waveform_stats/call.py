"""Result of `waveform_stats`, input validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.packed import checked_offsets


class WaveformStats(NamedTuple):
    """Of each clip: `peak` `[N]` float32, `mean_square` `[N]` float64, `nonfinite` `[N]` int64."""

    peak: Tensor
    mean_square: Tensor
    nonfinite: Tensor


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated, except offsets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def stats(self, waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of `WaveformStats` from contiguous `[S]` samples and `[N + 1]` int64 offsets.

        Malformed offsets on a GPU give NaN in the first two.
        """


def empty_stats(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialized tensors for the fields of `WaveformStats`."""
    clips = cu_seqlens.shape[0] - 1
    return (
        waveform.new_empty(clips),
        waveform.new_empty(clips, dtype=torch.float64),
        waveform.new_empty(clips, dtype=torch.int64),
    )


def validate(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous samples and contiguous int64 offsets; raises the ValueErrors of `waveform_stats`."""
    if not isinstance(waveform, Tensor):
        raise ValueError(f"waveform is a {type(waveform).__name__}; pass a torch tensor")
    if waveform.dtype != torch.float32:
        raise ValueError(f"waveform is {waveform.dtype}; it must be torch.float32")
    if waveform.dim() != 1:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}; it must have one dimension")
    cu_seqlens = checked_offsets(
        "cu_seqlens", cu_seqlens, waveform.shape[0], waveform.device, torch.int64, of="samples"
    )
    return waveform.detach().contiguous(), cu_seqlens.contiguous()


def select(waveform: Tensor, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("waveform_stats", requested, device=waveform.device)


def check(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, str]:
    """Arguments of the op, validated; raises ValueError."""
    return *validate(waveform, cu_seqlens), select(waveform, backend)
