"""What the backends that drive a library's GPU kernels share: the questions they are asked, and their corner cases."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def missing_gpu(lowest: tuple[int, int], highest: tuple[int, int] = (99, 0)) -> str | None:
    """Why no kernel for compute capabilities from `lowest` to `highest` can run here, None if one can."""
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
    """Why `module` cannot be imported, None if it can. Imports it: a library for another torch fails only then."""
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
    """Why a flash-attention kernel cannot serve such a call, None if it can."""
    if dtype not in (torch.float16, torch.bfloat16):
        return f"q is {dtype}; the kernel takes float16 and bfloat16"
    return rejects_kernel(
        device=device, head_dim=head_dim, return_lse=return_lse, needs_grad=needs_grad, largest=largest
    )


def rejects_kernel(
    *, device: torch.device, head_dim: int, return_lse: bool, needs_grad: bool, largest: int
) -> str | None:
    """The part that does not depend on the dtype."""
    if device.type != "cuda":
        return f"the tensors are on {device}; the kernel reads GPU memory"
    if head_dim % 8 or head_dim > largest:
        return f"head_dim is {head_dim}; the kernel takes multiples of 8 up to {largest}"
    if return_lse and needs_grad:
        return "its backward takes no gradient of the log-sum-exp"
    return None


def nothing_to_attend(q: Tensor, k: Tensor) -> bool:
    """No kernel can be launched over no token at all."""
    return q.shape[0] == 0 or k.shape[0] == 0


def attended_nothing(q: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp where no query has a key."""
    return q.new_zeros(q.shape), q.new_full((q.shape[1], q.shape[0]), -math.inf, dtype=torch.float32)


def no_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)


def unit_last_stride(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def lse_from_kernel(lse: Tensor) -> Tensor:
    """flash-attention 2 writes +inf for a query without keys, so that its backward computes exp(-inf)."""
    return lse.masked_fill(lse == math.inf, -math.inf)


def lse_for_kernel(lse: Tensor) -> Tensor:
    return lse.masked_fill(lse == -math.inf, math.inf).contiguous()


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """PyTorch's own attention kernels add up dQ in a fixed order only where its global switch asks for it.

    The switch also has every new tensor filled with NaN, by a kernel of its own, unless that is switched off.
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
