"""Where the float32 state of each trained parameter lies on this rank, at any ZeRO stage and precision.

DeepSpeed keeps master weights and Adam's moments in flat tensors, which differ with the stage, the precision and the
number of ranks. A slice names a stretch of one parameter in them, so that state can move from any layout to any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"


@dataclass(frozen=True)
class Slice:
    """A stretch of one parameter's state.

    Attributes:
        kind: `weight` (the float32 master), one of Adam's moments, or `average` (the teacher's).
        name: of the parameter.
        offset: of the first element in the flattened parameter.
        value: the live memory, `[n]` float32.
        replicated: every rank holds the same.
    """

    kind: str
    name: str
    offset: int
    value: Tensor
    replicated: bool


@dataclass(frozen=True)
class _Stretch:
    """`length` elements of a parameter, `offset` from its begin, at `start` in a tensor of the optimizer."""

    name: str
    offset: int
    flat: Tensor
    start: int
    length: int
    replicated: bool = False

    def slice_of(self, kind: str, tensor: Tensor) -> Slice:
        value = tensor.detach().view(-1)[self.start : self.start + self.length]
        return Slice(kind, self.name, self.offset, value, self.replicated)


def trained_slices(engine: Any) -> list[Slice]:
    """Master weights, and Adam's moments if it has any yet."""
    state = _adam(engine).state
    slices = []
    for stretch in _stretches(engine):
        slices.append(stretch.slice_of(WEIGHT, stretch.flat))
        if stretch.flat in state:
            slices += [stretch.slice_of(moment, state[stretch.flat][moment]) for moment in MOMENTS]
    return slices


def adam_steps(engine: Any) -> int:
    """Steps that Adam has counted; 0 on a rank that holds no part of any parameter."""
    state = _adam(engine).state
    return next((int(state[part.flat]["step"]) for part in _stretches(engine) if part.flat in state), 0)


def create_moments(engine: Any, steps: int) -> None:
    """Give Adam moments of zero after `steps` steps, to be filled; none if it has not counted any."""
    state = _adam(engine).state
    state.clear()
    if steps:
        for flat in {id(part.flat): part.flat for part in _stretches(engine)}.values():
            # As fused AdamW makes it: the count on the parameter's device.
            count = torch.tensor(float(steps), device=flat.device)
            state[flat] = {"step": count, **{moment: torch.zeros_like(flat) for moment in MOMENTS}}


@torch.no_grad()
def publish_weights(engine: Any) -> None:
    """Give the parameters that run the values of the masters. A collective call."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return
    if _unpartitioned(optimizer):
        for running, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            torch._foreach_copy_(running, masters)
    elif engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_prologue()
        for _, parameter in _trained(engine):
            group, start, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            master = optimizer.fp32_partitioned_groups_flat[group].detach()[start : start + length]
            parameter.ds_tensor.data.copy_(master)
        # Gathers again what stays whole between steps.
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()


def shard_extent(parameter: Any) -> tuple[int, int]:
    """Offset and length, without padding, of this rank's shard of a parameter of ZeRO-3."""
    padded = parameter.ds_tensor.ds_numel
    offset = dist.get_rank(parameter.ds_process_group) * padded
    return offset, max(0, min(padded, parameter.ds_numel - offset))


def _stretches(engine: Any) -> Iterator[_Stretch]:
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        for name, parameter in _trained(engine):
            yield _Stretch(name, 0, parameter, 0, parameter.numel(), replicated=True)
    elif _unpartitioned(optimizer):
        names = {parameter: name for name, parameter in _trained(engine)}
        for running, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(running, masters, strict=True):
                yield _Stretch(names[parameter], 0, master, 0, master.numel(), replicated=True)
    elif engine.zero_optimization_stage() == 3:
        for name, parameter in _trained(engine):
            group, start, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset, length = shard_extent(parameter)
            if length:
                yield _Stretch(name, offset, optimizer.fp32_partitioned_groups_flat[group], start, length)
    else:
        for name, parameter in _trained(engine):
            # None where no element falls into this rank's partition.
            if (mapping := parameter._hp_mapping) is not None:
                (flat,) = optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
                held, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield _Stretch(name, held.start, flat, place.start, held.numel)


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _adam(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _unpartitioned(optimizer: Any) -> bool:
    """Whether this is DeepSpeed's optimizer of stage 0 in bf16: whole masters on every rank."""
    return hasattr(optimizer, "fp32_groups")
