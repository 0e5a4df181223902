"""flash-attn 3 backend, Hopper GPUs: the module `flash_attn_interface`, through functions below its autograd.

The log-sum-exp is `[H, Tq]` float32, -inf for a query without keys. dQ is summed in a fixed order.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.attention.library_kernels import (
    empty_backward,
    empty_forward,
    missing_gpu,
    missing_module,
    rejects_half_precision_kernel,
)
from slap_fast.ops.tensor_checks import unit_last_stride

_MODULE = "flash_attn_interface"
rejects = rejects_half_precision_kernel


def unavailable() -> str | None:
    """Why the library cannot serve on this machine; None if it can."""
    return missing_gpu((9, 0), (9, 0)) or missing_module(_MODULE, "flash-attn 3 (flash-attention's hopper folder)")


def _settings(call: AttentionCall) -> dict[str, Any]:
    return {
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
        "softmax_scale": call.scale,
        "window_size_left": call.left,
        "window_size_right": call.right,
    }


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    if call.is_empty:
        return empty_forward(call)
    library: Any = importlib.import_module(_MODULE)
    out, lse, *_ = library._flash_attn_forward(
        *map(unit_last_stride, call[:3]), **_settings(call), causal=call.is_causal
    )
    return out, lse


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    if call.is_empty:
        return empty_backward(call)
    library: Any = importlib.import_module(_MODULE)
    grad_out, q, k, v = map(unit_last_stride, (grad_out, call.q, call.k, call.v))
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    library._flash_attn_backward(
        grad_out,
        q,
        k,
        v,
        out,
        lse,
        dq=grad_q,
        dk=grad_k,
        dv=grad_v,
        **_settings(call),
        is_causal=call.is_causal,
        deterministic=True,
    )
    return grad_q, grad_k, grad_v
