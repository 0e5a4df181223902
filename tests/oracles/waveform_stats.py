"""`waveform_stats` reference: one clip at a time, in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def waveform_stats(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`waveform` `[S]`, `cu_seqlens` `[N + 1]` to peak `[N]` float32, mean square `[N]` float64, non-finite `[N]`."""
    peaks, mean_squares, nonfinite = [], [], []
    for begin, end in pairwise(cu_seqlens.tolist()):
        clip = waveform[begin:end].double()
        good = clip[clip.isfinite()]
        peaks.append(good.abs().max().item() if len(good) else 0.0)
        mean_squares.append(good.square().mean().item() if len(good) else 0.0)
        nonfinite.append(len(clip) - len(good))
    return (
        torch.tensor(peaks, dtype=torch.float32),
        torch.tensor(mean_squares, dtype=torch.float64),
        torch.tensor(nonfinite, dtype=torch.int64),
    )
