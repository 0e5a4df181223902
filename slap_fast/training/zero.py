"""The DeepSpeed engine: its configuration, the optimizer and its parameter groups."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Literal

import torch
from torch import nn

from slap_fast.config.loading import ConfigError
from slap_fast.config.recipe import OptimizerConfig, RunConfig, TrainingConfig
from slap_fast.training.distributed.process_group import Ranks, import_deepspeed

Precision = Literal["bf16", "fp32"]

# Elements whose gradients are reduced together at stages 1 to 3, long enough for any network. DeepSpeed's own choice,
# ten times as many, holds several copies of all gradients of a model of this size.
REDUCE_BUCKET_SIZE = 50_000_000


def build_engine(
    model: nn.Module, config: RunConfig, ranks: Ranks, optimizer: torch.optim.Optimizer | None = None
) -> Any:
    """Wrap the model; `engine(batch, ...)` runs it, `engine.backward` and `engine.step` train it.

    Raises:
        ConfigError: the batch does not divide among the ranks.
    """
    deepspeed = import_deepspeed()
    settings = deepspeed_config(config, ranks.world_size, resolve_precision(config, ranks.device))
    # All of a bucket is allocated, however few gradients there are.
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    settings["zero_optimization"]["reduce_bucket_size"] = min(REDUCE_BUCKET_SIZE, trained)
    training = config.efficiency.training
    if ranks.is_first:
        for note in without_effect(training, ranks.device):
            print(note, file=sys.stderr)
    # One of its optimizers prints the machine's memory at every turn.
    with contextlib.redirect_stdout(None):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer or build_optimizer(model, config.recipe.optimizer),
            config=settings,
            dist_init_required=False,
        )
    # Stage 0 in bf16 makes the optimizer's state by a step with zero gradients, which would count as the first.
    getattr(engine.optimizer, "optimizer", engine.optimizer).state.clear()
    return engine


def without_effect(training: TrainingConfig, device: torch.device) -> list[str]:
    """What the recipe asks for in vain, and why."""
    notes = []
    if training.compile and training.zero_stage == 3:
        notes.append(
            "training.compile has no effect at zero_stage=3: DeepSpeed's hooks within each block cannot be compiled; "
            "blocks run as they are"
        )
    if device.type == "cpu" and (training.offload_optimizer or training.offload_parameters):
        notes.append("training.offload_... has no effect without a GPU: all states are in the host's memory as it is")
    return notes


def resolve_precision(config: RunConfig, device: torch.device) -> Precision:
    """`auto` is bf16 on a GPU and on a CPU with bf16 dot products, else fp32."""
    precision = config.efficiency.training.precision
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def deepspeed_config(config: RunConfig, world_size: int, precision: Precision) -> dict[str, Any]:
    batch_size = config.recipe.schedule.batch_size
    if batch_size % world_size:
        raise ConfigError(
            f"schedule.batch_size ({batch_size}) does not divide among {world_size} ranks; "
            f"use schedule.batch_size={batch_size // world_size * world_size or world_size}"
        )
    training = config.efficiency.training
    micro_batch_size, stage = training.micro_batch_size, training.zero_stage
    accumulates = micro_batch_size is not None and micro_batch_size < batch_size // world_size
    # Sums over many micro-batches lose digits in bf16; stage 0 has no other sums.
    precise = {"grad_accum_dtype": "fp32"} if accumulates and precision == "bf16" and stage > 0 else {}
    zero: dict[str, Any] = {"stage": stage}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if training.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // world_size,
        "gradient_accumulation_steps": 1,
        # Always given: DeepSpeed clips at 1.0 otherwise.
        "gradient_clipping": config.recipe.optimizer.gradient_clipping,
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "data_types": precise,
        # Sums over many ranks lose digits as well: a ring in bf16 rounds once a rank.
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Its own optimizer for offloading would be compiled on first use.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        # Of each step's own (`set_learning_rate`); until then nothing may move, not even by decay.
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, `decay` and `no_decay`: norms, biases, probes, the mask token and the temperature do not decay."""
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Norms, biases, probes, the mask token and the temperature are vectors; nothing that should decay is.
            groups["decay" if parameter.ndim > 1 else "no_decay"].append(parameter)
    return [
        {"name": "decay", "params": groups["decay"], "weight_decay": weight_decay},
        {"name": "no_decay", "params": groups["no_decay"], "weight_decay": 0.0},
    ]


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Shape of each parameter, also while ZeRO-3 keeps only shards of it."""
    return {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in model.named_parameters()}


def precision_of(engine: Any) -> Precision:
    return "bf16" if engine.bfloat16_enabled() else "fp32"
