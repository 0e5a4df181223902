"""PyTorch's memory-efficient kernels, GPU: self-attention, full or causal, in float32 too.

xformers 0.0.35 calls the same operators for its block-diagonal masks. They take no window, and every query needs a key.
Their log-sum-exp is `[N, H, L]`, with L the longest sequence rounded up to 32, and +inf beyond the end of a sequence.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast.ops.attention.backend_torch_padded import Padding
from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.attention.library_kernels import (
    deterministic_kernels,
    empty_backward,
    empty_forward,
    missing_gpu,
    rejects_kernel,
)
from slap_fast.ops.tensor_checks import unit_last_stride

_NO_MASK, _CAUSAL = 0, 1
_LSE_ALIGNMENT = 32


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine; None if they can."""
    return missing_gpu((5, 0), (9, 0))  # there are none for later GPUs


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
    """Why the kernels cannot serve such a call; None if they can."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"q is {dtype}; the kernel takes float32, float16 and bfloat16"
    if left != -1 or right not in (-1, 0):
        return f"window is ({left}, {right}); the kernel takes none, or (-1, 0)"
    if cross:
        return "keys have their own offsets; the kernel is called for self-attention"
    if heads != kv_heads:
        return f"{heads} query heads share {kv_heads} key heads; the kernel takes as many of both"
    return rejects_kernel(device=device, head_dim=head_dim, return_lse=return_lse, needs_grad=needs_grad, largest=256)


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    if call.is_empty:
        return empty_forward(call)
    q, k, v = map(unit_last_stride, call[:3])
    out, padded_lse, *_ = torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,  # bias
        *call[3:7],
        0.0,  # dropout
        _CAUSAL if call.is_causal else _NO_MASK,
        True,  # return the log-sum-exp
        scale=call.scale,
    )
    padding = Padding(call.cu_seqlens_q, call.max_seqlen_q, q.shape[0])
    lse = padding.pack(padded_lse[:, :, : call.max_seqlen_q])  # [T, H]
    return out[0].contiguous(), lse.t().contiguous()


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    if call.is_empty:
        return empty_backward(call)
    grad_out, q, k, v = map(unit_last_stride, (grad_out, call.q, call.k, call.v))
    no_dropout = torch.zeros((), dtype=torch.int64, device=q.device)
    with deterministic_kernels():
        *grads, _ = torch.ops.aten._efficient_attention_backward(
            grad_out[None],
            q[None],
            k[None],
            v[None],
            None,  # bias
            out[None],
            *call[3:7],
            _padded_lse(call, lse),
            0.0,  # dropout
            no_dropout,
            no_dropout,
            _CAUSAL if call.is_causal else _NO_MASK,
            False,  # no gradient of the bias
            scale=call.scale,
        )
    grad_q, grad_k, grad_v = (grad[0].contiguous() for grad in grads)
    return grad_q, grad_k, grad_v


def _padded_lse(call: AttentionCall, lse: Tensor) -> Tensor:
    """The packed `[H, T]` log-sum-exp as the kernels write it."""
    padding = Padding(call.cu_seqlens_q, call.max_seqlen_q, call.q.shape[0])
    padded = padding.pad(lse.t().unsqueeze(-1), lse.dtype).squeeze(-1)  # [N, H, max_seqlen_q]
    padded = padded.masked_fill(~padding.valid[:, None], math.inf)
    return F.pad(padded, (0, -call.max_seqlen_q % _LSE_ALIGNMENT), value=math.inf).contiguous()
