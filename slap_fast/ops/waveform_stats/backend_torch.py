"""PyTorch backend, any device: segment reductions, no host synchronization."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.packed import bounded_offsets


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


def stats(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.stats`."""
    total = waveform.numel()
    # Reading offsets back would stall a GPU: there, malformed ones are bounded, and the results are NaN.
    bounds = bounded_offsets(cu_seqlens, total)
    malformed = (bounds != cu_seqlens).any() | (bounds[0] != 0) | (bounds[-1] != total)

    finite = waveform.isfinite()
    magnitude = torch.where(finite, waveform, 0).abs()
    count = _segment_sum(finite.double(), bounds)
    energy = _segment_sum(magnitude.double().square_(), bounds)
    peak = torch.segment_reduce(magnitude, "max", offsets=bounds, unsafe=True, initial=0.0)
    peak = torch.where(malformed, torch.nan, peak)
    mean_square = torch.where(malformed, torch.nan, energy / count.clamp(min=1))
    return peak, mean_square, bounds.diff() - count.long()


def _segment_sum(values: Tensor, bounds: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=bounds, unsafe=True, initial=0.0)
