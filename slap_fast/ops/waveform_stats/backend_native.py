"""Native backend, CPU: one pass over the samples on all of torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import aligned
from slap_fast.ops.waveform_stats.call import empty_stats

unavailable = native.unavailable


def rejects(*, device: torch.device) -> str | None:
    """Why native code cannot serve a waveform on `device`; None if it can."""
    return None if device.type == "cpu" else f"the waveform is on {device}; native code reads CPU memory"


def stats(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.stats`."""
    waveform = aligned(waveform)
    peak, mean_square, nonfinite = empty_stats(waveform, cu_seqlens)
    native.require().waveform_stats(
        waveform=waveform.data_ptr(),
        total=waveform.numel(),
        cu_seqlens=cu_seqlens.data_ptr(),
        clips=peak.numel(),
        peak=peak.data_ptr(),
        mean_square=mean_square.data_ptr(),
        nonfinite=nonfinite.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return peak, mean_square, nonfinite
