"""How large the gradient of each part of the model is, at every ZeRO stage, before clipping.

DeepSpeed keeps reduced gradients in another place at each stage: whole on every rank at stage 0, and at stage 1 where
bf16 is summed up in float32; elsewhere in shards, each on one rank. What it offloads to the host it keeps the norms of.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slap_fast.training.metrics.host_copy import HostCopy

TOWERS = ("audio_encoder", "text_encoder", "caption_decoder", "heads")
"""`heads`: both poolings, the temperature, and the prototypes with the MLP before them."""


class GradientNorms:
    """The L2 norm of each tower's gradient.

    To be made between the backward pass and the step, which frees gradients; nothing waits for the device until a value
    is asked for.

    Args:
        engine: of a `PretrainingModel`.
    """

    def __init__(self, engine: Any) -> None:
        own, self._sharded = _norms(engine.optimizer, engine.module)
        norms: dict[str, list[Tensor]] = {tower: [torch.zeros((), device=engine.device)] for tower in TOWERS}
        for parameter, norm in own:
            norms[engine.module.tower_of(parameter)].append(norm.to(engine.device, torch.float32))
        # In float64, since the square of a float32 may overflow.
        self._squares = torch.stack([torch.stack(norms[tower]).double().square().sum() for tower in TOWERS])
        self._copy: HostCopy | None = None

    def reduce(self) -> None:
        """Sum over the ranks and start on the way to the host. A collective call; the second does nothing."""
        if self._copy is None:
            if self._sharded:
                dist.all_reduce(self._squares)
            self._copy = HostCopy(self._squares.sqrt())

    def values(self) -> dict[str, float]:
        """`{tower: norm}` over all ranks. A collective call if `reduce` was not called."""
        self.reduce()
        assert self._copy is not None
        return dict(zip(TOWERS, self._copy.result(), strict=True))


_Pairs = list[tuple[nn.Parameter, Tensor]]


def _norms(optimizer: Any, model: nn.Module) -> tuple[_Pairs, bool]:
    """Parameters with the norm of their gradient, or of this rank's shard of it, which is then True."""
    # At stages 1 and 2, and 3.
    groups: Any = getattr(optimizer, "params_in_partition", None) or getattr(optimizer, "fp16_groups", None)
    if getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False):
        offloaded = optimizer.norm_for_param_grads
        keys = ((parameter, optimizer.get_param_id(parameter)) for group in groups for parameter in group)
        return [(parameter, offloaded[key]) for parameter, key in keys if key in offloaded], True
    if hasattr(optimizer, "averaged_gradients"):
        averaged = optimizer.averaged_gradients
        return _measured(_pairs((groups[group], averaged[group]) for group in averaged)), True
    if hasattr(optimizer, "fp32_groups_gradients"):  # stage 1 with float32 sums of bf16 gradients
        pairs = _pairs(zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True))
    else:
        pairs = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    return _measured(pairs), False


def _measured(pairs: _Pairs) -> _Pairs:
    if not pairs:
        return []
    parameters, gradients = zip(*pairs, strict=True)
    # Summed up in float32 and rounded to the gradients' type: to ask for float32 takes a CPU thrice as long in bf16.
    return list(zip(parameters, torch._foreach_norm(gradients), strict=True))


def _pairs(groups: Iterable[tuple[Any, Any]]) -> _Pairs:
    """A group's gradients follow its parameters, with zeros between or after them that fill up a shard."""
    return list(
        chain.from_iterable(
            zip(parameters, (g for g in gradients or () if not getattr(g, "_zero_padding", False)), strict=False)
            for parameters, gradients in groups
        )
    )
