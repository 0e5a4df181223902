"""Native backend, CPU: float32, bfloat16 and float16, on all of torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.rms_norm.call import BackwardCall, ForwardCall
from slap_fast.ops.tensor_checks import STORAGE, contiguous

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, **_traits: object) -> str | None:
    """Why native code cannot serve tensors of `dtype` on `device`; None if it can."""
    if device.type != "cpu":
        return f"x is on {device}; native code reads CPU memory"
    return None if dtype in STORAGE else f"x is {dtype}; native code takes float32, bfloat16 and float16"


def forward(call: ForwardCall, summed: Tensor | None, normed: Tensor, rstd: Tensor) -> None:
    """See `Backend.forward`."""
    x, weight = contiguous(call.x), contiguous(call.weight)
    residual = None if call.residual is None else contiguous(call.residual)
    native.require().rms_norm(
        dtype=STORAGE[x.dtype],
        rows=rstd.numel(),
        width=x.shape[-1],
        x=x.data_ptr(),
        residual=_address(residual),
        weight=weight.data_ptr(),
        eps=call.eps,
        sum=_address(summed),
        normed=normed.data_ptr(),
        rstd=rstd.data_ptr(),
        threads=torch.get_num_threads(),
    )


def backward(call: BackwardCall, grad: Tensor, grad_weight: Tensor) -> None:
    """See `Backend.backward`."""
    grad_normed, summed, weight = contiguous(call.grad_normed), contiguous(call.summed), contiguous(call.weight)
    grad_summed = None if call.grad_summed is None else contiguous(call.grad_summed)
    native.require().rms_norm_backward(
        dtype=STORAGE[summed.dtype],
        rows=call.rstd.numel(),
        width=summed.shape[-1],
        grad_normed=grad_normed.data_ptr(),
        grad_sum=_address(grad_summed),
        sum=summed.data_ptr(),
        weight=weight.data_ptr(),
        rstd=call.rstd.data_ptr(),
        grad=grad.data_ptr(),
        grad_weight=grad_weight.data_ptr(),
        threads=torch.get_num_threads(),
    )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
