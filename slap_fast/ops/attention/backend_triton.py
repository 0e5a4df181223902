"""Packed attention by Triton kernels: no padding, no host synchronisation, fit for CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.tensor_checks import unit_last_stride

# Beyond, the float32 kernels do not fit into the registers of a thread.
_LARGEST_HEAD = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine, None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, head_dim: int, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call, None if they can."""
    if dtype not in _LARGEST_HEAD:
        return f"the tensors are {dtype}; the Triton kernels take float32, float16 and bfloat16"
    if head_dim > _LARGEST_HEAD[dtype]:
        return f"the head dimension is {head_dim}; in {dtype} the Triton kernels take up to {_LARGEST_HEAD[dtype]}"
    return triton_support.rejects_device(device)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """A new, contiguous `[Tq, H, D]` and the log-sum-exp `[H, Tq]`, float32."""
    from slap_fast.kernels import attention as kernels

    q, k, v = map(unit_last_stride, (q, k, v))
    offsets = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    return kernels.forward(q, k, v, *offsets, left, right, scale)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """New, contiguous gradients of `q`, `k` and `v`, in their dtypes."""
    from slap_fast.kernels import attention as kernels

    grad_out, q, k, v, out = map(unit_last_stride, (grad_out, q, k, v, out))
    offsets = cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous()
    return kernels.backward(
        grad_out, grad_lse.contiguous(), q, k, v, out, lse.contiguous(), *offsets, left, right, scale
    )
