"""Packed attention by flash-attn 3, for Hopper: the module `flash_attn_interface`, below its autograd.

The log-sum-exp is `[H, Tq]` float32, -inf for a query without keys; dQ is summed in a fixed order.
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

_MODULE = "flash_attn_interface"
rejects = rejects_half_precision_kernel


def unavailable() -> str | None:
    """Why the library cannot serve on this machine, None if it can."""
    return missing_gpu((9, 0), (9, 0)) or missing_module(_MODULE, "flash-attn 3 (flash-attention's hopper folder)")


def _library() -> Any:
    return importlib.import_module(_MODULE)


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
    out, lse, *_ = _library()._flash_attn_forward(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        softmax_scale=scale,
        causal=(left, right) == (-1, 0),
        window_size_left=left,
        window_size_right=right,
    )
    return out, lse


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
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    _library()._flash_attn_backward(
        grad_out,
        q,
        k,
        v,
        out,
        lse,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        dq=grad_q,
        dk=grad_k,
        dv=grad_v,
        softmax_scale=scale,
        is_causal=(left, right) == (-1, 0),
        window_size_left=left,
        window_size_right=right,
        deterministic=True,
    )
    return grad_q, grad_k, grad_v
