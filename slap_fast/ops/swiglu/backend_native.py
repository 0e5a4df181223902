"""Native backend, CPU: float32, bfloat16 and float16, on all of torch's threads."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import STORAGE, contiguous

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why native code cannot serve a `gate_up` of `dtype` on `device`; None if it can."""
    if device.type != "cpu":
        return f"gate_up is on {device}; native code reads CPU memory"
    return None if dtype in STORAGE else f"gate_up is {dtype}; native code takes float32, bfloat16 and float16"


def forward(gate_up: Tensor, out: Tensor) -> None:
    """See `Backend.forward`."""
    gate_up = contiguous(gate_up)
    native.require().swiglu(
        **_shape(out), gate_up=gate_up.data_ptr(), out=out.data_ptr(), threads=torch.get_num_threads()
    )


def backward(gate_up: Tensor, grad: Tensor, grad_gate_up: Tensor) -> None:
    """See `Backend.backward`."""
    grad, gate_up = contiguous(grad), contiguous(gate_up)
    native.require().swiglu_backward(
        **_shape(grad),
        grad=grad.data_ptr(),
        gate_up=gate_up.data_ptr(),
        grad_gate_up=grad_gate_up.data_ptr(),
        threads=torch.get_num_threads(),
    )


def _shape(out: Tensor) -> dict[str, str | int]:
    return {"dtype": STORAGE[out.dtype], "rows": out.shape[:-1].numel(), "width": out.shape[-1]}
