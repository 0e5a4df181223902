"""`torch.compile` for the transformer blocks of a model in training, each by itself."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from slap_fast.config.loading import ConfigError
from slap_fast.models.layers import DecoderBlock, EncoderBlock


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of the towers, the teacher's too, and of the caption decoder."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    kinds = (EncoderBlock, DecoderBlock, GradientCheckpointingLayer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Let `torch.compile` make one program of each kind of block, for any lengths.

    Args:
        options: further arguments of `torch.compile`.

    Raises:
        ConfigError: there is no compiler.
    """
    if "backend" not in options and (missing := missing_compiler(torch.cuda.is_available())):
        raise ConfigError(f"training.compile is true, but {missing}; install it, or set training.compile=false")
    # Layers share their code and so its programs, one for each case: local or global, first or not, trained or not, and
    # what an op distinguishes of long clips. Beyond the limit, which is 8, a block would run uncompiled.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in transformer_blocks(model):
        # Not the module: its hooks are DeepSpeed's, which cannot be compiled.
        block.forward = torch.compile(block.forward, dynamic=True, **options)


def missing_compiler(cuda: bool) -> str | None:
    """What `torch.compile` lacks here; None if it has all it needs."""
    from torch._inductor import cpp_builder, exc

    if cuda and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler was found"
    return None
