"""flash-attn 2 backend, GPU: the package `flash-attn`, version 2.7 or later, through functions below its autograd.

The log-sum-exp is `[H, Tq]` float32. dQ is summed in a fixed order.
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
    lse_for_kernel,
    lse_from_kernel,
    missing_gpu,
    missing_module,
    rejects_half_precision_kernel,
)
from slap_fast.ops.tensor_checks import unit_last_stride

_MODULE = "flash_attn.flash_attn_interface"
rejects = rejects_half_precision_kernel


def unavailable() -> str | None:
    """Why the library cannot serve on this machine; None if it can."""
    return missing_gpu((8, 0)) or missing_module(_MODULE, "flash-attn")


def _settings(call: AttentionCall) -> dict[str, Any]:
    return {
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
        "dropout_p": 0.0,
        "softmax_scale": call.scale,
        "causal": call.is_causal,
        "window_size_left": call.left,
        "window_size_right": call.right,
    }


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    if call.is_empty:
        return empty_forward(call)
    library: Any = importlib.import_module(_MODULE)
    out, lse, *_ = library._flash_attn_varlen_forward(*map(unit_last_stride, call[:3]), **_settings(call))
    return out, lse_from_kernel(lse)


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    if call.is_empty:
        return empty_backward(call)
    library: Any = importlib.import_module(_MODULE)
    grad_out, q, k, v = map(unit_last_stride, (grad_out, call.q, call.k, call.v))
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    library._flash_attn_varlen_backward(
        grad_out,
        q,
        k,
        v,
        out,
        lse_for_kernel(lse),
        grad_q,
        grad_k,
        grad_v,
        **_settings(call),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=True,
    )
    return grad_q, grad_k, grad_v
