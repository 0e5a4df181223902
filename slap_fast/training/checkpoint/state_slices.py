"""Slices: named ranges of the float32 training state on this rank, independent of ZeRO stage and precision.

DeepSpeed keeps master weights and Adam's moments in flat tensors whose layout depends on the stage, the precision and
the number of ranks. A slice names the range of one parameter, so that state moves from any layout to any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slap_fast.training.zero import inner_optimizer, master_ranges

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"


@dataclass(frozen=True)
class Slice:
    """A range of one parameter's state.

    Attributes:
        kind: `weight` (the float32 master), one of Adam's `MOMENTS`, or `average` (the teacher's EMA).
        name: of the parameter.
        offset: of the first element within the flattened parameter.
        value: `[n]` float32; the memory that training uses, not a copy.
        replicated: every rank holds the same slice.
    """

    kind: str
    name: str
    offset: int
    value: Tensor
    replicated: bool


def trained_slices(engine: Any) -> list[Slice]:
    """This rank's master weights, and Adam's moments if there are any yet."""
    state = inner_optimizer(engine).state
    slices = []
    for part in master_ranges(engine):
        tensors = {WEIGHT: part.flat}
        if part.flat in state:
            tensors |= {moment: state[part.flat][moment] for moment in MOMENTS}
        slices += [Slice(kind, part.name, part.offset, part.view(x), part.replicated) for kind, x in tensors.items()]
    return slices


def adam_steps(engine: Any) -> int:
    """Steps that Adam has counted; 0 on a rank that holds no part of any parameter."""
    state = inner_optimizer(engine).state
    return next((int(state[part.flat]["step"]) for part in master_ranges(engine) if part.flat in state), 0)


def create_moments(engine: Any, steps: int) -> None:
    """Reset Adam to moments of zero and a count of `steps`, for a checkpoint to fill; for 0 steps to no state."""
    state = inner_optimizer(engine).state
    state.clear()
    if steps:
        for flat in {id(part.flat): part.flat for part in master_ranges(engine)}.values():
            # As fused AdamW creates it: the count is on the parameter's device.
            count = torch.tensor(float(steps), device=flat.device)
            state[flat] = {"step": count, **{moment: torch.zeros_like(flat) for moment in MOMENTS}}
