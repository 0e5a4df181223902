"""Gradient norm of each tower, before clipping, at every ZeRO stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slap_fast.training.metrics.step_metrics import HostCopy
from slap_fast.training.zero import local_gradient_norms

TOWERS = ("audio_encoder", "text_encoder", "caption_decoder", "heads")
"""`heads`: both poolings, the logit scale, and the prototypes with the MLP before them."""


class GradientNorms:
    """The L2 norm of the gradient of each trained tower (`PretrainingModel.tower_of`).

    Create it between the backward pass and the step, which frees the gradients. Only `values` waits for the device.

    Args:
        engine: of a `PretrainingModel`.
    """

    def __init__(self, engine: Any) -> None:
        pairs, self._sharded = local_gradient_norms(engine)
        self._towers = tuple(tower for tower in TOWERS if tower in engine.module.trained_towers)
        # A rank may hold no shard of a tower.
        norms: dict[str, list[Tensor]] = {tower: [torch.zeros((), device=engine.device)] for tower in self._towers}
        for parameter, norm in pairs:
            norms[engine.module.tower_of(parameter)].append(norm.to(engine.device, torch.float32))
        # In float64: the square of a float32 may overflow.
        self._squares = torch.stack([torch.stack(norms[tower]).double().square().sum() for tower in self._towers])
        self._copy: HostCopy | None = None

    def reduce(self) -> None:
        """Sum over the ranks and start the copy to the host. A collective call; a second one does nothing."""
        if self._copy is None:
            if self._sharded:
                dist.all_reduce(self._squares)
            self._copy = HostCopy(self._squares.sqrt())

    def values(self) -> dict[str, float]:
        """`{tower: norm}` over all ranks. A collective call unless `reduce` was called."""
        self.reduce()
        assert self._copy is not None
        return dict(zip(self._towers, self._copy.result(), strict=True))
