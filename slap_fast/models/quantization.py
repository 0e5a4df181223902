"""Precision of a loaded model: float32, bfloat16, or int8 weights for inference on CPUs.

With int8, the linear layers of the transformer blocks of both towers are quantized: nearly all of the work. Inputs are
quantized by row when they are used. The patch projection, the poolings, norms, embeddings and the caption decoder
stay float32: the poolings alone would add more than the error of all blocks, and save a hundredth of the time.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from slap_fast import native
from slap_fast.errors import ModelError
from slap_fast.models.layers import Linear
from slap_fast.ops.int8_product import Int8Weight, int8_kernel, int8_product, pack_int8

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "int8"]


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for inference on CPUs."""

    panels: Tensor
    starts: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = pack_int8(linear.weight)
        self.kernel = packed.kernel
        self.register_buffer("panels", packed.panels)
        self.register_buffer("starts", packed.starts)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.eval()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kernel={self.kernel}"

    def get_extra_state(self) -> str:
        """The kernel: panels of the same size for another one have another order."""
        return self.kernel

    def set_extra_state(self, state: str) -> None:
        if state != self.kernel:
            raise ModelError(
                f"the int8 weights are laid out for the kernel {state}, and this model for {self.kernel}; load float32 "
                'weights with precision="int8" on this machine'
            )

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise ModelError(
                "a model with int8 weights has no gradients: call encode_audio, encode_text or caption, or run it "
                'under torch.no_grad(); to train it, load it with precision="fp32"'
            )
        return int8_product(
            x, Int8Weight(self.panels, self.starts, self.scales, self.kernel, self.in_features), self.bias
        )


def check_precision(precision: str, device: torch.device | str) -> None:
    """
    Raises:
        ValueError: it is not one of `Precision`.
        ModelError: int8 weights are asked for where they cannot be used.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(map(repr, get_args(Precision)))}")
    if precision == "int8" and torch.device(device).type != "cpu":
        raise ModelError(f'precision="int8" is for CPUs, and device is {str(device)!r}; use "bf16" there')
    if precision == "int8" and (reason := native.unavailable()) is not None:
        raise ModelError(f'precision="int8" needs native code: {reason}')


def apply_precision(model: SLAP, precision: Precision, device: torch.device | str = "cpu") -> None:
    """Convert a float32 model on the CPU, which will run on `device`; logs a warning where it will be no faster."""
    if precision == "bf16":
        model.to(torch.bfloat16)
        has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        if torch.device(device).type == "cpu" and not has_products:
            _warn_once(
                f"bf16 is emulated on this CPU ({native.isa()}), which has no bfloat16 products: it saves memory, "
                "and is no faster than fp32"
            )
    elif precision == "int8":
        model.requires_grad_(False)
        for tower in (model.audio_encoder, model.text_encoder):
            if tower is not None:
                _quantize(tower, keep=model.audio_encoder.patch_embedding)
        if int8_kernel() == "baseline":
            _warn_once(f"int8 has no code for this CPU's vectors ({native.isa()}): it may be slower than fp32")


def is_int8(model: nn.Module) -> bool:
    """Whether a model, or a part of one, has int8 weights."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def require_float(model: nn.Module, purpose: str) -> None:
    """
    Args:
        purpose: what a model with int8 weights cannot do, as "be saved".

    Raises:
        ModelError: it has int8 weights.
    """
    if is_int8(model):
        raise ModelError(f'a model with int8 weights cannot {purpose}; load it with precision="fp32"')


def _quantize(module: nn.Module, *, keep: nn.Module) -> None:
    """Replace linear layers below a module by int8 ones; each float32 weight is freed before the next is converted."""
    for name, child in module.named_children():
        # Subclasses of other libraries may compute anything.
        if isinstance(child, nn.Linear) and type(child) in (nn.Linear, Linear) and child is not keep:
            setattr(module, name, Int8Linear(child))
        else:
            _quantize(child, keep=keep)


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
