"""The gate of a SwiGLU MLP by the native module: float32, bfloat16 and float16 in CPU memory, on all threads."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import STORAGE, contiguous


def rejects(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why native code cannot serve a `gate_up` of `dtype` on `device`, None if it can."""
    if device.type != "cpu":
        return f"gate_up is on {device}; native code reads CPU memory"
    return None if dtype in STORAGE else f"gate_up is {dtype}; native code takes float32, bfloat16 and float16"


def forward(gate_up: Tensor, out: Tensor) -> None:
    """Write `[..., M]` of a `[..., 2 * M]` `gate_up` to `out`."""
    gate_up = contiguous(gate_up)
    native.require().swiglu(
        **_shape(out), gate_up=gate_up.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads()
    )


def backward(grad: Tensor, gate_up: Tensor, grad_gate_up: Tensor) -> None:
    """Write the gradient of `gate_up` to `grad_gate_up`."""
    grad, gate_up = contiguous(grad), contiguous(gate_up)
    native.require().swiglu_backward(
        **_shape(grad),
        grad=grad.data_ptr(),
        gate_up=gate_up.data_ptr(),
        grad_gate_up=grad_gate_up.data_ptr(),
        threads=torch.get_num_threads(),
    )


def _shape(out: Tensor) -> dict[str, str | int]:
    return {"storage": STORAGE[out.dtype], "rows": out.shape[:-1].numel(), "width": out.shape[-1]}
