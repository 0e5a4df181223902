"""Triton backend, GPU: float32, float16 and bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.tensor_checks import unit_last_stride

unavailable = triton_support.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot serve a `gate_up` of `dtype` on `device`; None if they can."""
    return triton_support.rejects_dtype("gate and up", dtype) or triton_support.rejects_device(device)


def forward(gate_up: Tensor, out: Tensor) -> None:
    """See `Backend.forward`."""
    from slap_fast.kernels import swiglu as kernels

    kernels.forward(_rows(gate_up), _rows(out))


def backward(gate_up: Tensor, grad: Tensor, grad_gate_up: Tensor) -> None:
    """See `Backend.backward`."""
    from slap_fast.kernels import swiglu as kernels

    kernels.backward(_rows(grad), _rows(gate_up), _rows(grad_gate_up))


def _rows(x: Tensor) -> Tensor:
    """`[..., W]` as `[R, W]`: a view where all rows are equally far apart, as in a slice of a wider tensor."""
    return unit_last_stride(x.reshape(x.shape[:-1].numel(), x.shape[-1]))
