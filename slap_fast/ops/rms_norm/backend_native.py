"""RMSNorm by the native module: float32, bfloat16 and float16 in CPU memory, on all of torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import STORAGE, contiguous


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve tensors of `dtype` on `device`, None if it can."""
    if device.type != "cpu":
        return f"x is on {device}; native code reads CPU memory"
    return None if dtype in STORAGE else f"x is {dtype}; native code takes float32, bfloat16 and float16"


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, summed: Tensor | None, normed: Tensor, rstd: Tensor
) -> None:
    """Write the sum of `x` and `residual` to `summed`, where there is one, and what follows from it to the others."""
    x, weight = contiguous(x), contiguous(weight)
    residual = None if residual is None else contiguous(residual)
    native.require().rms_norm(
        **_shape(x),
        x=x.data_ptr(),
        residual=_address(residual),
        weight=weight.data_ptr(),
        eps=eps,
        sum=_address(summed),
        normed=normed.data_ptr(),
        rstd=rstd.data_ptr(),
        threads=torch.get_num_threads(),
    )


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
    grad_normed, summed, weight = contiguous(grad_normed), contiguous(summed), contiguous(weight)
    grad_summed = None if grad_summed is None else contiguous(grad_summed)
    native.require().rms_norm_backward(
        **_shape(summed),
        grad_normed=grad_normed.data_ptr(),
        grad_sum=_address(grad_summed),
        sum=summed.data_ptr(),
        weight=weight.data_ptr(),
        rstd=rstd.data_ptr(),
        grad=grad.data_ptr(),
        grad_weight=grad_weight.data_ptr(),
        threads=torch.get_num_threads(),
    )


def _shape(x: Tensor) -> dict[str, str | int]:
    return {"storage": STORAGE[x.dtype], "rows": x.shape[:-1].numel(), "width": x.shape[-1]}


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
