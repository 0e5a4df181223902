"""Packed attention by PyTorch's own flash-attention kernels: what `torch.nn.attention.varlen.varlen_attn` calls.

That function has an autograd of its own, hence the operators below it. The log-sum-exp is `[H, Tq]` float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.attention.library_kernels import (
    attended_nothing,
    deterministic_kernels,
    lse_for_kernel,
    lse_from_kernel,
    missing_gpu,
    no_gradients,
    nothing_to_attend,
    rejects_half_precision_kernel,
    unit_last_stride,
)

rejects = rejects_half_precision_kernel


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine, None if they can."""
    reason = missing_gpu((8, 0))
    if reason is None and not torch.backends.cuda.is_flash_attention_available():
        return "this torch is built without flash attention"
    return reason


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
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        0.0,  # dropout
        (left, right) == (-1, 0),
        False,  # no debug mask
        scale=scale,
        window_size_left=left,
        window_size_right=right,
    )
    return out, lse_from_kernel(lse)


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
    with deterministic_kernels():
        grads = torch.ops.aten._flash_attention_backward(
            grad_out,
            q,
            k,
            v,
            out,
            lse_for_kernel(lse),
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            0.0,  # dropout
            (left, right) == (-1, 0),
            torch.zeros(2, dtype=torch.uint64, device=q.device),  # the state of a dropout that there is not
            torch.empty(0, device=q.device),
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )
    grad_q, grad_k, grad_v = (grad.contiguous() for grad in grads)
    return grad_q, grad_k, grad_v
