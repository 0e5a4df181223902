"""Shared by the backends that call another library's GPU kernels: availability, refusals and corner cases."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from slap_fast.ops.attention.call import AttentionCall


def missing_gpu(lowest: tuple[int, int], highest: tuple[int, int] = (99, 0)) -> str | None:
    """Why kernels for compute capabilities `lowest` to `highest` cannot run here; None if they can."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    found = torch.cuda.get_device_capability()
    if not lowest <= found <= highest:
        return (
            f"the GPU has compute capability {found[0]}.{found[1]}; it needs {lowest[0]}.{lowest[1]} to "
            f"{highest[0]}.{highest[1]}"
        )
    return None


def missing_module(module: str, distribution: str) -> str | None:
    """Why `module` cannot be imported; None if it can. Imports it: only that detects a build for another torch."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"{distribution} is not installed ({error})"
    except Exception as error:
        return f"{distribution} does not load ({type(error).__name__}: {error}); build it against this torch"
    return None


def rejects_half_precision_kernel(
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    return_lse: bool,
    needs_grad: bool,
    largest: int = 256,
    **_traits: object,
) -> str | None:
    """Why a flash-attention kernel cannot serve such a call; None if it can."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"q is {dtype}; the kernel takes float16 and bfloat16"
    return rejects_kernel(
        device=device, head_dim=head_dim, return_lse=return_lse, needs_grad=needs_grad, largest=largest
    )


def rejects_kernel(
    *, device: torch.device, head_dim: int, return_lse: bool, needs_grad: bool, largest: int
) -> str | None:
    """Why a kernel cannot serve such a call, whatever the dtype; None if it can."""
    if device.type != "cuda":
        return f"the tensors are on {device}; the kernel reads GPU memory"
    if head_dim % 8 or head_dim > largest:
        return f"head_dim is {head_dim}; the kernel takes multiples of 8 up to {largest}"
    if return_lse and needs_grad:
        return "its backward takes no gradient of the log-sum-exp"
    return None


def empty_forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of an empty call."""
    q = call.q
    return q.new_zeros(q.shape), q.new_full((q.shape[1], q.shape[0]), -math.inf, dtype=torch.float32)


def empty_backward(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of an empty call."""
    q, k, v = call.q, call.k, call.v
    return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)


def lse_from_kernel(lse: Tensor) -> Tensor:
    """-inf for a query without keys, where flash-attention 2 writes +inf so that its backward computes exp(-inf)."""
    return lse.masked_fill(lse == math.inf, -math.inf)


def lse_for_kernel(lse: Tensor) -> Tensor:
    """Inverse of `lse_from_kernel`."""
    return lse.masked_fill(lse == -math.inf, math.inf).contiguous()


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Sum dQ in a fixed order: PyTorch's own attention kernels do so only under its global switch.

    That switch also fills every new tensor with NaN, at the cost of a kernel, unless that is switched off.
    """
    filling: Any = torch.utils.deterministic
    filled = filling.fill_uninitialized_memory
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        filling.fill_uninitialized_memory = filled and before
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        filling.fill_uninitialized_memory = filled
