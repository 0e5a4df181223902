"""Native backend, CPU: float32, bfloat16 and float16, on all of torch's threads.

Without AVX2, PyTorch multiplies float32 copies: see `matrix_product`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.matrix_product import matrix_product
from slap_fast.ops.tensor_checks import STORAGE

unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why native code cannot serve an `x` of `dtype` on `device`; None if it can."""
    if device.type != "cpu":
        return f"x is on {device}; native code reads CPU memory"
    return None if dtype in STORAGE else f"x is {dtype}; native code takes float32, bfloat16 and float16"


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `Backend.forward`."""
    if bias is None:
        return matrix_product(x, weight.t()).to(x.dtype)
    out = x.new_empty(len(x), len(weight), dtype=torch.float32).copy_(bias)
    return matrix_product(x, weight.t(), out, accumulate=True).to(x.dtype)
