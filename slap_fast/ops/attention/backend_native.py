"""Native backend, CPU: float32, bfloat16 and float16, on all of torch's threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.tensor_checks import STORAGE, aligned, contiguous

_MAX_HEAD_DIM = 256


unavailable = native.unavailable


def rejects(*, device: torch.device, dtype: torch.dtype, head_dim: int, **_traits: object) -> str | None:
    """Why native code cannot serve such a call; None if it can."""
    if device.type != "cpu":
        return f"the tensors are on {device}; native code reads CPU memory"
    if dtype not in STORAGE:
        return f"the tensors are {dtype}; native code takes float32, bfloat16 and float16"
    if not 1 <= head_dim <= _MAX_HEAD_DIM:
        return f"the head dimension is {head_dim}; native code takes 1 to {_MAX_HEAD_DIM}"
    return None


def _readable(x: Tensor) -> Tensor:
    return aligned(x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous())


def _heads(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _inputs(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Scalars of the call and the readable copies `q`, `k` and `v`."""
    return native.require().AttentionInputs(
        dtype=STORAGE[q.dtype],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[2],
        left=call.left,
        right=call.right,
        scale=call.scale,
        q=_heads(q),
        k=_heads(k),
        v=_heads(v),
    )


def _batch(q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Any:
    return native.require().AttentionBatch(
        cu_seqlens_q=cu_seqlens_q.data_ptr(),
        cu_seqlens_k=cu_seqlens_k.data_ptr(),
        clips=cu_seqlens_q.numel() - 1,
        total_q=q.shape[0],
        total_k=k.shape[0],
    )


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    q, k, v = (_readable(x) for x in call[:3])
    cu_seqlens_q, cu_seqlens_k = contiguous(call.cu_seqlens_q), contiguous(call.cu_seqlens_k)
    out = torch.empty(q.shape, dtype=q.dtype, device="cpu")
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device="cpu")
    native.require().varlen_attention(
        inputs=_inputs(call, q, k, v),
        batch=_batch(q, k, cu_seqlens_q, cu_seqlens_k),
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return out, lse


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    grad_out, q, k, v, out = (_readable(x) for x in (grad_out, call.q, call.k, call.v, out))
    cu_seqlens_q, cu_seqlens_k = contiguous(call.cu_seqlens_q), contiguous(call.cu_seqlens_k)
    lse, grad_lse = contiguous(lse), contiguous(grad_lse)
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device="cpu") for x in (q, k, v))
    native.require().varlen_attention_backward(
        inputs=_inputs(call, q, k, v),
        batch=_batch(q, k, cu_seqlens_q, cu_seqlens_k),
        grad_out=_heads(grad_out),
        out=_heads(out),
        lse=lse.data_ptr(),
        grad_lse=grad_lse.data_ptr(),
        grad_q=grad_q.data_ptr(),
        grad_k=grad_k.data_ptr(),
        grad_v=grad_v.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return grad_q, grad_k, grad_v
