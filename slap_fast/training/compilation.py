"""`torch.compile` for each transformer block of a model in training."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from slap_fast.config.loading import ConfigError
from slap_fast.models.layers import DecoderBlock, EncoderBlock


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the towers, of the teacher and of the caption decoder."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (EncoderBlock, DecoderBlock, GradientCheckpointingLayer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile the forward of each block, for dynamic lengths.

    Args:
        options: further arguments of `torch.compile`.

    Raises:
        ConfigError: there is no compiler.
    """
    if "backend" not in options and (missing := missing_compiler(torch.cuda.is_available())):
        raise ConfigError(f"training.compile is true, but {missing}; install it, or set training.compile=false")
    # Layers share their code and therefore its graphs: one for each combination of local or global, first or later,
    # trained or frozen, and the cases that an op distinguishes. Beyond the limit (default 8) a block runs uncompiled.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in transformer_blocks(model):
        # Not the module: torch.compile cannot trace DeepSpeed's hooks on it.
        block.forward = torch.compile(block.forward, dynamic=True, **options)


def missing_compiler(cuda: bool) -> str | None:
    """Describes the compiler that `torch.compile` needs and that is not installed; None if nothing is missing."""
    from torch._inductor import cpp_builder, exc

    if cuda and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler was found"
    return None
