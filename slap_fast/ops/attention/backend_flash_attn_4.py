"""Packed attention by flash-attn 4, for Hopper and Blackwell: the package `flash-attn-4`, below its autograd.

The log-sum-exp is `[H, Tq]` float32, -inf for a query without keys; dQ is summed in a fixed order.
An unlimited side of a window is None there.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from slap_fast.ops.attention.library_kernels import (
    attended_nothing,
    missing_gpu,
    missing_module,
    no_gradients,
    nothing_to_attend,
    rejects_half_precision_kernel,
    unit_last_stride,
)

_MODULE = "flash_attn.cute.interface"


def unavailable() -> str | None:
    """Why the library cannot serve on this machine, None if it can."""
    return missing_gpu((9, 0), (11, 0)) or missing_module(_MODULE, "flash-attn-4")


def rejects(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, return_lse: bool, needs_grad: bool, **_traits: object
) -> str | None:
    """Why the kernels cannot serve such a call, None if they can."""
    # Blackwell has kernels for up to 128, and for 256.
    return rejects_half_precision_kernel(
        device=device, dtype=dtype, head_dim=head_dim, return_lse=return_lse, needs_grad=needs_grad, largest=128
    )


def _library() -> Any:
    return importlib.import_module(_MODULE)


def _window(left: int, right: int) -> dict[str, Any]:
    if (left, right) == (-1, 0):
        return {"causal": True, "window_size_left": None, "window_size_right": None}
    sides = [None if side < 0 else side for side in (left, right)]
    return {"causal": False, "window_size_left": sides[0], "window_size_right": sides[1]}


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
    if nothing_to_attend(q, k):
        return attended_nothing(q)
    q, k, v = unit_last_stride(q, k, v)
    out, lse, *_ = _library()._flash_attn_fwd(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        softmax_scale=scale,
        return_lse=True,
        **_window(left, right),
    )
    return out, lse.contiguous()


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
    if nothing_to_attend(q, k):
        return no_gradients(q, k, v)
    grad_out, q, k, v = unit_last_stride(grad_out, q, k, v)
    grad_q, grad_k, grad_v, *_ = _library()._flash_attn_bwd(
        q,
        k,
        v,
        out,
        grad_out,
        lse,
        softmax_scale=scale,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        deterministic=True,
        **_window(left, right),
    )
    return grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()
