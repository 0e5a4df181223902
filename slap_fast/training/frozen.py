"""Frozen parts (`model.freeze`): no gradients, optimizer state or communication; their weights in checkpoints.

In bf16 DeepSpeed converts a frozen parameter to bfloat16 and keeps no float32 copy. Checkpoints and exported models
must hold the weights that the run started from, so each rank keeps a share of them in float32 in host memory: 4 bytes
per parameter, divided by the number of ranks.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slap_fast.config.recipe import Part, Recipe
from slap_fast.training.checkpoint.state_slices import WEIGHT, Slice
from slap_fast.training.model import PretrainingModel
from slap_fast.training.zero import is_sharded, local_shard, regather, shard_extent, whole_shape

_SHARE = "float32_share"


@dataclass
class _Share:
    """The elements of a parameter, flattened, whose float32 values this rank keeps."""

    offset: int
    values: Tensor  # [n] float32, on the CPU


def model_parts(model: PretrainingModel) -> dict[str, nn.Module]:
    """The parts that `model.freeze` and `optimizer.rate_multipliers` name, those that this run has."""
    parts = {name: getattr(model.student, name, None) for name in typing.get_args(Part)}
    parts["prototype_head"] = model.student_head
    return {name: module for name, module in parts.items() if module is not None}


def freeze_parts(model: PretrainingModel, names: Sequence[str]) -> None:
    """Exclude parts from training, before the engine is built.

    The teacher of a frozen part would equal it at every step, so the part itself takes the teacher's place.
    """
    parts = model_parts(model)
    for name in names:
        parts[name].requires_grad_(False)
    if model.teacher_encoder is not None and "audio_encoder" in names:
        model.teacher_encoder = model.student.audio_encoder
    if model.teacher_head is not None and "prototype_head" in names:
        model.teacher_head = model.student_head


def frozen_notes(model: PretrainingModel, recipe: Recipe) -> list[str]:
    """A message for each frozen part, for each objective that trains nothing, and for each setting without effect."""
    frozen, rates = recipe.model.freeze, recipe.optimizer.rate_multipliers
    sizes = {name: sum(each.numel() for each in part.parameters()) for name, part in model_parts(model).items()}
    notes = [f"frozen: {name} ({sizes[name]:,} parameters)" for name in frozen]
    if "audio_encoder" in frozen and "self_distillation" in recipe.objectives.active:
        notes.append(
            "the audio encoder is frozen, so self-distillation trains at most the prototype head; "
            "objectives.self_distillation_weight=0 saves its time"
        )
    for name in typing.get_args(Part):
        if getattr(rates, name) != 1 and (name in frozen or name not in sizes):
            reason = "it is frozen" if name in frozen else "this run does not have it"
            notes.append(f"optimizer.rate_multipliers.{name}={getattr(rates, name):g} has no effect: {reason}")
    return notes


def keep_float32_weights(model: PretrainingModel, rank: int, world_size: int) -> None:
    """Keep this rank's share of the frozen weights, before the engine converts them to bfloat16."""
    for _, parameter in frozen_parameters(model):
        flat = parameter.detach().view(-1)
        begin, end = (flat.numel() * each // world_size for each in (rank, rank + 1))
        setattr(parameter, _SHARE, _Share(begin, flat[begin:end].to("cpu", torch.float32, copy=True)))


def frozen_parameters(model: PretrainingModel) -> Iterator[tuple[str, nn.Parameter]]:
    """`(name, parameter)` of the parameters that are not trained, without those of the teacher."""
    teacher = {parameter for _, parameter, _ in model.teacher_pairs()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter not in teacher:
            yield name, parameter


def frozen_slices(model: PretrainingModel) -> list[Slice]:
    """This rank's part of the frozen weights, as checkpoints store them."""
    slices = []
    for name, parameter in frozen_parameters(model):
        share = getattr(parameter, _SHARE, None)
        if share is not None:
            slices.append(Slice(WEIGHT, name, share.offset, share.values, replicated=False))
            continue
        offset, length = shard_extent(parameter)
        if length:
            value = local_shard(parameter).view(-1)[:length]
            slices.append(Slice(WEIGHT, name, offset, value, replicated=not is_sharded(parameter)))
    return slices


@torch.no_grad()
def publish_frozen(engine: Any) -> None:
    """Copy the frozen weights that `frozen_slices` has read into the forward pass. A collective call."""
    parameters = [parameter for _, parameter in frozen_parameters(engine.module)]
    for parameter in parameters:
        if (full := whole_float32(parameter, engine.device)) is not None:
            offset, length = shard_extent(parameter)
            local_shard(parameter).view(-1)[:length].copy_(full.view(-1)[offset : offset + length])
    regather(parameters)


def whole_float32(parameter: nn.Parameter, device: torch.device) -> Tensor | None:
    """The float32 weights of a frozen parameter, if `keep_float32_weights` has kept them. A collective call.

    Args:
        device: of the engine, on which its process group can communicate.
    """
    share: _Share | None = getattr(parameter, _SHARE, None)
    if share is None:
        return None
    full = torch.zeros(whole_shape(parameter), dtype=torch.float32, device=device)
    full.view(-1)[share.offset : share.offset + share.values.numel()].copy_(share.values)
    dist.all_reduce(full)
    return full
