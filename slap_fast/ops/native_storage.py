"""How native code is handed numbers: what it calls their types, and memory that it can read."""

from __future__ import annotations

import torch
from torch import Tensor

STORAGE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def aligned(x: Tensor) -> Tensor:
    """`x` itself where each number lies at a multiple of its size, else a copy: views of bytes may begin anywhere."""
    return x if x.data_ptr() % x.itemsize == 0 else x.clone()


def contiguous(x: Tensor) -> Tensor:
    """`x` itself where it is contiguous and aligned, else a copy."""
    return aligned(x.contiguous())
