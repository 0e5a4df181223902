"""Triton backend, GPU: no padding, no host synchronization, usable in CUDA graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import triton_support
from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.tensor_checks import unit_last_stride

# Largest head dimension. Beyond 128, the float32 kernels do not fit into the registers of a thread.
_LARGEST_HEAD = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}


def unavailable() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    return triton_support.unavailable()


def rejects(*, device: torch.device, dtype: torch.dtype, head_dim: int, **_traits: object) -> str | None:
    """Why the kernels cannot serve such a call; None if they can."""
    if dtype not in _LARGEST_HEAD:
        return f"the tensors are {dtype}; the Triton kernels take float32, float16 and bfloat16"
    if head_dim > _LARGEST_HEAD[dtype]:
        return f"the head dimension is {head_dim}; in {dtype} the Triton kernels take up to {_LARGEST_HEAD[dtype]}"
    return triton_support.rejects_device(device)


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    from slap_fast.kernels import attention as kernels

    q, k, v = map(unit_last_stride, call[:3])
    settings = call.cu_seqlens_q.contiguous(), call.cu_seqlens_k.contiguous(), call.left, call.right, call.scale
    return kernels.forward(q, k, v, *settings)


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    from slap_fast.kernels import attention as kernels

    grad_out, q, k, v, out = map(unit_last_stride, (grad_out, call.q, call.k, call.v, out))
    settings = call.cu_seqlens_q.contiguous(), call.cu_seqlens_k.contiguous(), call.left, call.right, call.scale
    return kernels.backward(grad_out, grad_lse.contiguous(), q, k, v, out, lse.contiguous(), *settings)
