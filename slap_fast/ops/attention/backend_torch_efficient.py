"""Packed attention by PyTorch's memory-efficient kernels, in float32 too: what xformers' block-diagonal masks run.

xformers calls these operators (0.0.35 has no such kernel of its own) with masks that it makes from host lengths.
The kernels know no window, and no query without keys: self-attention, full or causal.

Their log-sum-exp is `[N, H, L]`, with L the longest sequence rounded up to 32, and infinite beyond a sequence's end.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast.ops.attention.backend_torch_padded import Padding
from slap_fast.ops.attention.library_kernels import (
    attended_nothing,
    deterministic_kernels,
    missing_gpu,
    no_gradients,
    nothing_to_attend,
    rejects_kernel,
    unit_last_stride,
)

_NO_MASK, _CAUSAL = 0, 1
_LSE_ALIGNMENT = 32


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine, None if they can."""
    # They have none of their own for later GPUs.
    return missing_gpu((5, 0), (9, 0))


def rejects(
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    heads: int,
    kv_heads: int,
    left: int,
    right: int,
    cross: bool,
    return_lse: bool,
    needs_grad: bool,
    **_traits: object,
) -> str | None:
    """Why the kernels cannot serve such a call, None if they can."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"q is {dtype}; the kernel takes float32, float16 and bfloat16"
    if left != -1 or right not in (-1, 0):
        return f"window is ({left}, {right}); the kernel takes none, or (-1, 0)"
    if cross:
        return "keys have offsets of their own; the kernel is called for self-attention"
    if heads != kv_heads:
        return f"{heads} query heads share {kv_heads} key heads; the kernel takes as many of both"
    return rejects_kernel(device=device, head_dim=head_dim, return_lse=return_lse, needs_grad=needs_grad, largest=256)


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
    out, padded_lse, *_ = torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,  # bias
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        0.0,  # dropout
        _NO_MASK if right < 0 else _CAUSAL,
        True,  # the log-sum-exp
        scale=scale,
    )
    padding = Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    lse = padding.pack(padded_lse[:, :, :max_seqlen_q])  # [T, H]
    return out[0].contiguous(), lse.t().contiguous()


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
    padding = Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    padded_lse = padding.pad(lse.t().unsqueeze(-1), lse.dtype).squeeze(-1)  # [N, H, max_seqlen_q]
    padded_lse = padded_lse.masked_fill(~padding.valid[:, None], math.inf)
    padded_lse = F.pad(padded_lse, (0, -max_seqlen_q % _LSE_ALIGNMENT), value=math.inf)
    no_dropout = torch.zeros((), dtype=torch.int64, device=q.device)
    with deterministic_kernels():
        *grads, _ = torch.ops.aten._efficient_attention_backward(
            grad_out[None],
            q[None],
            k[None],
            v[None],
            None,  # bias
            out[None],
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            padded_lse.contiguous(),
            0.0,  # dropout
            no_dropout,
            no_dropout,
            _NO_MASK if right < 0 else _CAUSAL,
            False,  # no gradient of the bias
            scale=scale,
        )
    grad_q, grad_k, grad_v = (grad[0].contiguous() for grad in grads)
    return grad_q, grad_k, grad_v
