"""RMSNorm by Triton kernels: float32, float16 and bfloat16 on a GPU; CUDA graphs after a first call."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support

_MAX_WIDTH = 8192  # a row is held in the registers of one program


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why the kernels cannot serve rows of `width` and `dtype` on `device`, None if they can."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"x is {dtype}; the Triton kernels take float32, float16 and bfloat16"
    if not 0 < width <= _MAX_WIDTH:
        return f"the rows have {width} values; the Triton kernels take 1 to {_MAX_WIDTH}"
    return triton_support.rejects_device(device)


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, summed: Tensor | None, normed: Tensor, rstd: Tensor
) -> None:
    """Write the sum of `x` and `residual` to `summed`, where there is one, and what follows from it to the others."""
    from slap_fast.kernels import rms_norm as kernels

    residual = None if residual is None else residual.contiguous()
    kernels.forward(x.contiguous(), residual, weight.contiguous(), eps, summed, normed, rstd)


def backward(
    grad_normed: Tensor,
    grad_summed: Tensor | None,
    summed: Tensor,
    weight: Tensor,
    rstd: Tensor,
    grad: Tensor,
    grad_weight: Tensor,
) -> None:
    """Write the gradients of the sum and of the weight to `grad` and `grad_weight`."""
    from slap_fast.kernels import rms_norm as kernels

    grad_summed = None if grad_summed is None else grad_summed.contiguous()
    kernels.backward(
        grad_normed.contiguous(), grad_summed, summed.contiguous(), weight.contiguous(), rstd, grad, grad_weight
    )
