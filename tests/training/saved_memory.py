"""How much memory a backward pass has been left, at most at one time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Peak:
    """Bytes of tensors saved for backward: now, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0


class _Saved:
    def __init__(self, tensor: Tensor, peak: Peak) -> None:
        self.tensor, self._peak = tensor, peak
        peak.now += tensor.nbytes
        peak.most = max(peak.most, peak.now)

    def __del__(self) -> None:
        self._peak.now -= self.tensor.nbytes


@contextmanager
def saved_memory() -> Iterator[Peak]:
    """Measures what the block saves; a tensor that two operations save counts twice, and parameters count too."""
    peak = Peak()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, peak), lambda saved: saved.tensor):
        yield peak
