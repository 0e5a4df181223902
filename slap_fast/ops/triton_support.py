"""Whether Triton kernels can run on this machine and on given tensors. Importing this module does not import triton."""

from __future__ import annotations

import importlib.util
import os

import torch

# For tests: Triton's interpreter runs kernels in Python on CPU tensors. Triton decides so when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    """Why Triton kernels cannot run on this machine, or None."""
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
    """Why kernels cannot serve tensors of `dtype`, or None; `name` is what the message calls them."""
    if dtype in (torch.float32, torch.float16, torch.bfloat16):
        return None
    return f"{name} are {dtype}; the Triton kernels take float32, float16 and bfloat16"


def rejects_device(device: torch.device) -> str | None:
    """Why kernels cannot serve tensors on `device`, or None."""
    wanted = "cpu" if INTERPRETED else "cuda"
    return None if device.type == wanted else f"the tensors are on {device}; Triton runs on {wanted} here"
