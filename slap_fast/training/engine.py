"""The DeepSpeed engine: its configuration, and the AdamW optimizer."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Literal

import torch

from slap_fast.config.loading import ConfigError
from slap_fast.config.recipe import OptimizerConfig, RunConfig, TrainingConfig
from slap_fast.training.distributed.process_group import Ranks, import_deepspeed
from slap_fast.training.frozen import keep_float32_weights
from slap_fast.training.model import PretrainingModel
from slap_fast.training.parameter_groups import MULTIPLIER, parameter_groups
from slap_fast.training.zero import inner_optimizer

Precision = Literal["bf16", "fp32"]

REDUCE_BUCKET_SIZE = 50_000_000
"""Elements whose gradients are reduced together at stages 1 to 3.

Large enough to saturate any network. DeepSpeed's default, ten times as many, would hold several copies of all gradients
of a model of this size.
"""


def build_engine(
    model: PretrainingModel, config: RunConfig, ranks: Ranks, optimizer: torch.optim.Optimizer | None = None
) -> Any:
    """Wrap the model; `engine(batch, ...)` runs it, `engine.backward` and `engine.step` train it.

    Raises:
        ConfigError: the batch size is not a multiple of the number of ranks.
    """
    deepspeed = import_deepspeed()
    precision = resolve_precision(config, ranks.device)
    settings = deepspeed_config(config, ranks.world_size, precision)
    if precision == "bf16":
        keep_float32_weights(model, ranks.rank, ranks.world_size)
    # DeepSpeed allocates the whole bucket, also where there are fewer gradients.
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    settings["zero_optimization"]["reduce_bucket_size"] = min(REDUCE_BUCKET_SIZE, trained)
    training = config.efficiency.training
    if ranks.is_first:
        for note in ineffective_settings(training, ranks.device):
            print(note, file=sys.stderr)
    # One of DeepSpeed's optimizers prints memory statistics to stdout.
    with contextlib.redirect_stdout(None):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer or build_optimizer(model, config.recipe.optimizer),
            config=settings,
            dist_init_required=False,
        )
    # At stage 0 in bf16 DeepSpeed creates Adam's state by a step with zero gradients, which must not count as a step.
    inner_optimizer(engine).state.clear()
    return engine


def ineffective_settings(training: TrainingConfig, device: torch.device) -> list[str]:
    """One message for each setting that has no effect in this run, with the reason."""
    notes = []
    if training.compile and training.zero_stage == 3:
        notes.append(
            "training.compile has no effect at zero_stage=3: torch.compile cannot trace DeepSpeed's hooks inside each "
            "block; the blocks run uncompiled"
        )
    if device.type == "cpu" and (training.offload_optimizer or training.offload_parameters):
        notes.append("training.offload_... has no effect without a GPU: all state is in host memory already")
    return notes


def resolve_precision(config: RunConfig, device: torch.device) -> Precision:
    """`auto` means bf16 on a GPU that supports it and on a CPU with bf16 dot products, else fp32."""
    precision = config.efficiency.training.precision
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def deepspeed_config(config: RunConfig, world_size: int, precision: Precision) -> dict[str, Any]:
    """The configuration that `deepspeed.initialize` takes.

    Raises:
        ConfigError: the batch size is not a multiple of the number of ranks.
    """
    batch_size = config.recipe.schedule.batch_size
    if batch_size % world_size:
        raise ConfigError(
            f"schedule.batch_size ({batch_size}) is not a multiple of the number of ranks ({world_size}); "
            f"use schedule.batch_size={batch_size // world_size * world_size or world_size}"
        )
    training = config.efficiency.training
    micro_batch_size, stage = training.micro_batch_size, training.zero_stage
    accumulates = micro_batch_size is not None and micro_batch_size < batch_size // world_size
    # Sums over many micro-batches lose digits in bf16. Stage 0 does not support float32 sums.
    data_types = {"grad_accum_dtype": "fp32"} if accumulates and precision == "bf16" and stage > 0 else {}
    zero: dict[str, Any] = {"stage": stage}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if training.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": batch_size // world_size,
        "gradient_accumulation_steps": 1,
        # Set also where it is 0: DeepSpeed's default is to clip at 1.0.
        "gradient_clipping": config.recipe.optimizer.gradient_clipping,
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": True},
        "data_types": data_types,
        # A ring all-reduce in bf16 rounds once per rank.
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeedCPUAdam would be compiled on first use.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }


def build_optimizer(model: PretrainingModel, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, config),
        # `set_learning_rate` sets it before each step. Until then neither gradients nor decay change the weights.
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups, each with its multiplier."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group.get(MULTIPLIER, 1.0)


def precision_of(engine: Any) -> Precision:
    """The precision of an engine's forward and backward pass."""
    return "bf16" if engine.bfloat16_enabled() else "fp32"
