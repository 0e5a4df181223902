"""What Triton backends share: whether kernels can run here. Imports no triton: that happens with the first launch."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

# Triton then runs kernels in Python, on tensors in CPU memory: for tests. It decides so when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    """Why Triton kernels cannot run on this machine, None if they can."""
    if importlib.util.find_spec("triton") is None:
        return 'triton is not installed (pip install "slap-fast[gpu]")'
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    if torch.version.cuda is None:
        return "this torch is built for AMD GPUs, on which the kernels were never compiled"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"the GPU is sm_{major}{minor}; the kernels need sm_80 or newer"


def rejects_dtype(name: str, dtype: torch.dtype) -> str | None:
    """Why kernels cannot serve tensors of `dtype`, named `name` to the user, None if they can."""
    if dtype in (torch.float32, torch.float16, torch.bfloat16):
        return None
    return f"{name} are {dtype}; the Triton kernels take float32, float16 and bfloat16"


def rejects_device(device: torch.device) -> str | None:
    """Why kernels cannot serve tensors on `device`, None if they can."""
    wanted = "cpu" if INTERPRETED else "cuda"
    return None if device.type == wanted else f"the tensors are on {device}; Triton runs on {wanted} here"


def unit_last_stride(x: Tensor) -> Tensor:
    """`x` itself where the elements of its last dimension are neighbours, else a copy: gradients may be expanded."""
    return x if x.stride(-1) == 1 else x.contiguous()


def matrix(x: Tensor) -> Tensor:
    """`x` itself where a kernel can read it as rows: neighbours within a row, and 128 rows within 2**31 elements."""
    return x if x.stride(1) == 1 and x.stride(0) < 1 << 24 else x.contiguous()
