"""The gate of a SwiGLU MLP by Triton kernels: float32, float16 and bfloat16 on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.tensor_checks import unit_last_stride


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot serve a `gate_up` of `dtype` on `device`, None if they can."""
    return triton_support.rejects_dtype("gate and up", dtype) or triton_support.rejects_device(device)


def forward(gate_up: Tensor, out: Tensor) -> None:
    """Write `[..., M]` of a `[..., 2 * M]` `gate_up` to `out`."""
    from slap_fast.kernels import swiglu as kernels

    kernels.forward(_rows(gate_up), _rows(out))


def backward(grad: Tensor, gate_up: Tensor, grad_gate_up: Tensor) -> None:
    """Write the gradient of `gate_up` to `grad_gate_up`."""
    from slap_fast.kernels import swiglu as kernels

    kernels.backward(_rows(grad), _rows(gate_up), _rows(grad_gate_up))


def _rows(x: Tensor) -> Tensor:
    """`[R, W]` of `[..., W]`: a view where all rows lie at one distance, as in part of a wider tensor."""
    return unit_last_stride(x.reshape(x.shape[:-1].numel(), x.shape[-1]))
