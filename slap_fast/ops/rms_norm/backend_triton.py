"""Triton backend, GPU: float32, float16 and bfloat16; usable in CUDA graphs after a first call."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.rms_norm.call import BackwardCall, ForwardCall

_MAX_WIDTH = 8192  # one program keeps a whole row in registers

unavailable = triton_support.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why the kernels cannot serve rows of `width` and `dtype` on `device`; None if they can."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {dtype}; the Triton kernels take float32, float16 and bfloat16"
    if not 0 < width <= _MAX_WIDTH:
        return f"the rows have {width} values; the Triton kernels take 1 to {_MAX_WIDTH}"
    return triton_support.rejects_device(device)


def forward(call: ForwardCall, summed: Tensor | None, normed: Tensor, rstd: Tensor) -> None:
    """See `Backend.forward`."""
    from slap_fast.kernels import rms_norm as kernels

    residual = None if call.residual is None else call.residual.contiguous()
    kernels.forward(call.x.contiguous(), residual, call.weight.contiguous(), call.eps, summed, normed, rstd)


def backward(call: BackwardCall, grad: Tensor, grad_weight: Tensor) -> None:
    """See `Backend.backward`."""
    from slap_fast.kernels import rms_norm as kernels

    summed, weight, rstd, grad_normed, grad_summed = (x if x is None else x.contiguous() for x in call)
    kernels.backward(grad_normed, grad_summed, summed, weight, rstd, grad, grad_weight)
