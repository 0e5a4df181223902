"""Measures the peak memory of tensors saved for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Peak:
    """Bytes of tensors saved for backward: now, and the largest so far."""

    def __init__(self) -> None:
        self.now = self.largest = 0


class _Saved:
    def __init__(self, tensor: Tensor, peak: Peak) -> None:
        self.tensor, self._peak = tensor, peak
        peak.now += tensor.nbytes
        peak.largest = max(peak.largest, peak.now)

    def __del__(self) -> None:
        self._peak.now -= self.tensor.nbytes


@contextmanager
def saved_memory() -> Iterator[Peak]:
    """Measure the tensors that the block saves. A tensor saved by two operations counts twice; parameters count too."""
    peak = Peak()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, peak), lambda saved: saved.tensor):
        yield peak
