"""Numbers on their way from the device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of `numbers` `[n]` that is made as soon as the device has them; nothing waits for it before `result`."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def result(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()
