"""Interface to DeepSpeed's internals: float32 master weights, gradients and parameter shards at every ZeRO stage.

DeepSpeed keeps this state in a different place for each stage, precision and offload setting, and mostly without a
public API. This module is the only one that uses private attributes of DeepSpeed; a test enforces it.

Layouts, by the optimizer that DeepSpeed builds:

    stage 0, fp32       the plain torch optimizer; nothing is partitioned
    stage 0, bf16       FP16_UnfusedOptimizer: whole float32 masters on every rank
    stage 1 and 2       DeepSpeedZeroOptimizer: each rank holds a range of one flat master tensor per parameter group
    stage 1, bf16, float32 gradient sums
                        BF16_Optimizer: as stage 1, but gradients are whole on every rank
    stage 3             DeepSpeedZeroOptimizer_Stage3: each rank holds a shard of every parameter and of its master
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

CHECKED_WITH = "0.19.8"
"""The DeepSpeed version that every private attribute below was checked with; pyproject.toml pins it."""

PRIVATE_ATTRIBUTES = {
    "runtime/zero/partition_parameters.py": "ds_id ds_numel ds_process_group ds_shape ds_status ds_tensor "
    "ZeroParamStatus",
    "runtime/zero/stage3.py": "checkpoint_event_epilogue checkpoint_event_prologue fp16_groups get_param_id "
    "fp32_partitioned_groups_flat grad_partitions_flat_buffer grad_position offload_optimizer",
    "runtime/zero/stage_1_and_2.py": "_zero_padding averaged_gradients cpu_offload norm_for_param_grads "
    "params_in_partition update_lp_params",
    "runtime/bf16_optimizer.py": "bf16_groups fp32_groups_gradients",
    "runtime/fp16/unfused_optimizer.py": "fp32_groups",
    "utils/tensor_fragment.py": "_hp_mapping hp_fragment_address lp_fragment_address param_group_index",
}
"""Source file within DeepSpeed -> the attributes defined there that this module uses."""


@dataclass(frozen=True)
class MasterRange:
    """The float32 master of one parameter, or of the part of it that this rank holds.

    Attributes:
        name: of the parameter.
        offset: of the first element within the flattened parameter.
        flat: the tensor that the optimizer updates; the key of its state.
        start: position of the first element in `flat`.
        length: elements.
        replicated: every rank holds the same range.
    """

    name: str
    offset: int
    flat: Tensor
    start: int
    length: int
    replicated: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """This range of `flat` or of a state tensor of the same shape: `[length]`, sharing its memory."""
        return tensor.detach().view(-1)[self.start : self.start + self.length]


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer, without DeepSpeed's wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def master_ranges(engine: Any) -> Iterator[MasterRange]:
    """This rank's part of the master of each trained parameter; parameters without such a part are left out."""
    optimizer = engine.optimizer
    if _is_unwrapped(optimizer):
        for name, parameter in _trained(engine):
            yield MasterRange(name, 0, parameter, 0, parameter.numel(), replicated=True)
    elif _has_whole_masters(optimizer):
        names = {parameter: name for name, parameter in _trained(engine)}
        for parameter, master in _whole_masters(optimizer):
            yield MasterRange(names[parameter], 0, master, 0, master.numel(), replicated=True)
    elif engine.zero_optimization_stage() == 3:
        for name, parameter in _trained(engine):
            group, start, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            offset, length = shard_extent(parameter)
            if length:
                yield MasterRange(name, offset, optimizer.fp32_partitioned_groups_flat[group], start, length)
    else:
        for name, parameter in _trained(engine):
            # None where no element falls into this rank's partition.
            if (mapping := parameter._hp_mapping) is not None:
                (flat,) = optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
                own, master = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield MasterRange(name, own.start, flat, master.start, own.numel)


@torch.no_grad()
def publish_masters(engine: Any) -> None:
    """Copy the masters into the parameters that the forward pass uses. A collective call."""
    optimizer = engine.optimizer
    if _is_unwrapped(optimizer):
        return
    if _has_whole_masters(optimizer):
        for parameter, master in _whole_masters(optimizer):
            parameter.copy_(master)
    elif engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_prologue()
        for _, parameter in _trained(engine):
            group, start, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            master = optimizer.fp32_partitioned_groups_flat[group].detach()[start : start + length]
            parameter.ds_tensor.data.copy_(master)
        # Gathers again the parameters that stay whole between steps.
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()


def full_parameter(engine: Any, parameter: nn.Parameter) -> Tensor:
    """The whole parameter in float32, from its master if it has one. A collective call."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad and (full := safe_get_full_fp32_param(parameter)) is not None:
        return full
    # `safe_get_full_fp32_param` does not cover stage 0 in bf16.
    if _has_whole_masters(engine.optimizer):
        masters = dict(_whole_masters(engine.optimizer))
        if parameter in masters:
            return masters[parameter]
    if not is_sharded(parameter):
        return parameter.detach().float()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().float().clone()


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 partitions this parameter."""
    return hasattr(parameter, "ds_id")


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """`{name: shape}` of the whole parameters, also where this rank holds shards."""
    return {name: list(whole_shape(parameter)) for name, parameter in model.named_parameters()}


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a parameter, also where this rank holds a shard of it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def shard_extent(parameter: Any) -> tuple[int, int]:
    """Offset and length, in elements and without padding, of this rank's part of a parameter, flattened."""
    if not is_sharded(parameter):
        return 0, parameter.numel()
    padded = parameter.ds_tensor.ds_numel
    offset = dist.get_rank(parameter.ds_process_group) * padded
    return offset, max(0, min(padded, parameter.ds_numel - offset))


def local_shard(parameter: Any) -> Tensor:
    """The memory of this rank's part of a parameter: `[n]` with padding under ZeRO-3, else the whole parameter."""
    return parameter.ds_tensor.data if is_sharded(parameter) else parameter.data


def local_master(parameter: nn.Parameter, device: torch.device) -> Tensor:
    """The float32 values of `local_shard` of a trained parameter, on `device`: its master under ZeRO-3."""
    if not is_sharded(parameter):
        return parameter.detach().float()
    from deepspeed.utils import safe_get_local_fp32_param

    # With offloading the master is on the host.
    return safe_get_local_fp32_param(parameter).detach().view(-1).to(device)


def regather(parameters: Iterable[Any]) -> None:
    """After a change of `local_shard`s, update the parameters that ZeRO-3 keeps gathered. A collective call.

    Small parameters stay gathered between steps; without this, the forward pass would use their old values.
    """
    if not (sharded := [parameter for parameter in parameters if is_sharded(parameter)]):
        return
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    gathered = [parameter for parameter in sharded if parameter.ds_status is ZeroParamStatus.AVAILABLE]
    if gathered:
        gathered[0].partition(gathered)
        gathered[0].all_gather(gathered)


def local_gradient_norms(engine: Any) -> tuple[list[tuple[nn.Parameter, Tensor]], bool]:
    """L2 norm of the gradient of each trained parameter, before clipping; call it between backward and step.

    Returns:
        `(parameter, norm)` pairs, and whether these are norms of this rank's shards instead of whole gradients.
    """
    optimizer = engine.optimizer
    # At stages 1 and 2, and 3.
    groups: Any = getattr(optimizer, "params_in_partition", None) or getattr(optimizer, "fp16_groups", None)
    if getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False):
        # The gradients are on their way to the host; DeepSpeed keeps their norms.
        offloaded = optimizer.norm_for_param_grads
        keys = ((parameter, optimizer.get_param_id(parameter)) for group in groups for parameter in group)
        return [(parameter, offloaded[key]) for parameter, key in keys if key in offloaded], True
    if hasattr(optimizer, "averaged_gradients"):
        averaged = optimizer.averaged_gradients
        return _norms(_pairs((groups[group], averaged[group]) for group in averaged)), True
    if hasattr(optimizer, "fp32_groups_gradients"):
        return _norms(_pairs(zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True))), False
    return _norms([(p, p.grad) for p in engine.module.parameters() if p.grad is not None]), False


def discard_stale_gradients(engine: Any) -> None:
    """Clear the last step's gradients, before the forward pass.

    ZeRO-3 would otherwise apply the last gradient of a parameter again if it gets none in this step.
    """
    stale = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if isinstance(stale, Tensor):
        stale.zero_()


def step_if_finite(engine: Any, grad_norm: Callable[[], float]) -> tuple[bool, float]:
    """`engine.step()` unless a gradient is not finite on some rank.

    DeepSpeed checks by itself where it wraps the optimizer. It does not in float32 at stage 0.

    Args:
        grad_norm: computes the global gradient norm; called at stage 0 in float32 only.

    Returns:
        Whether the step was applied, and the global gradient norm before clipping. The same on every rank.
    """
    if not _is_unwrapped(engine.optimizer):
        engine.step()
        return engine.was_step_applied(), float(engine.get_global_grad_norm() or 0.0)
    norm = grad_norm()
    if not math.isfinite(norm):
        engine.zero_grad()
        return False, float("inf")
    engine.step()
    return True, norm


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _is_unwrapped(optimizer: Any) -> bool:
    """Stage 0 in float32."""
    return isinstance(optimizer, torch.optim.Optimizer)


def _has_whole_masters(optimizer: Any) -> bool:
    """Stage 0 in bf16."""
    return hasattr(optimizer, "fp32_groups")


def _whole_masters(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return chain.from_iterable(zip(*group, strict=True) for group in groups)


def _norms(pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> list[tuple[nn.Parameter, Tensor]]:
    if not pairs:
        return []
    parameters, gradients = zip(*pairs, strict=True)
    # In float32, rounded to the gradients' dtype. On a CPU in bf16, asking for float32 output takes 3 times as long.
    return list(zip(parameters, torch._foreach_norm(gradients), strict=True))


def _pairs(groups: Iterable[tuple[Any, Any]]) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters with their gradients, which a group holds in the same order, mixed with zeros that pad a shard."""
    return list(
        chain.from_iterable(
            zip(parameters, (g for g in gradients or () if not getattr(g, "_zero_padding", False)), strict=False)
            for parameters, gradients in groups
        )
    )
