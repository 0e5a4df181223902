"""flash-attn 4 backend, Hopper and Blackwell GPUs: the package `flash-attn-4`, through functions below its autograd.

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

_MODULE = "flash_attn.cute.interface"


def unavailable() -> str | None:
    """Why the library cannot serve on this machine; None if it can."""
    return missing_gpu((9, 0), (11, 0)) or missing_module(_MODULE, "flash-attn-4")


def rejects(
    *, device: torch.device, dtype: torch.dtype, head_dim: int, return_lse: bool, needs_grad: bool, **_traits: object
) -> str | None:
    """Why the kernels cannot serve such a call; None if they can."""
    # Blackwell has kernels for up to 128, and for 256.
    return rejects_half_precision_kernel(
        device=device, dtype=dtype, head_dim=head_dim, return_lse=return_lse, needs_grad=needs_grad, largest=128
    )


def _settings(call: AttentionCall) -> dict[str, Any]:
    # The library takes None for an unlimited side, and `causal` without a window.
    left, right = (None if side < 0 or call.is_causal else side for side in (call.left, call.right))
    return {
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
        "softmax_scale": call.scale,
        "causal": call.is_causal,
        "window_size_left": left,
        "window_size_right": right,
    }


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    if call.is_empty:
        return empty_forward(call)
    library: Any = importlib.import_module(_MODULE)
    out, lse, *_ = library._flash_attn_fwd(*map(unit_last_stride, call[:3]), **_settings(call), return_lse=True)
    return out, lse.contiguous()


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    if call.is_empty:
        return empty_backward(call)
    library: Any = importlib.import_module(_MODULE)
    grad_out, q, k, v = map(unit_last_stride, (grad_out, call.q, call.k, call.v))
    grads = library._flash_attn_bwd(q, k, v, out, grad_out, lse, **_settings(call), deterministic=True)
    grad_q, grad_k, grad_v = (grad.contiguous() for grad in grads[:3])
    return grad_q, grad_k, grad_v
