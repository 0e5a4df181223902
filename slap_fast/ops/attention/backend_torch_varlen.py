"""PyTorch's flash-attention kernels, GPU: the operators below `torch.nn.attention.varlen.varlen_attn` and its autograd.

The log-sum-exp is `[H, Tq]` float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.attention.library_kernels import (
    deterministic_kernels,
    empty_backward,
    empty_forward,
    lse_for_kernel,
    lse_from_kernel,
    missing_gpu,
    rejects_half_precision_kernel,
)
from slap_fast.ops.tensor_checks import unit_last_stride

rejects = rejects_half_precision_kernel


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine; None if they can."""
    reason = missing_gpu((8, 0))
    if reason is None and not torch.backends.cuda.is_flash_attention_available():
        return "this torch is built without flash attention"
    return reason


def _settings(call: AttentionCall) -> dict[str, Any]:
    return {"scale": call.scale, "window_size_left": call.left, "window_size_right": call.right}


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    if call.is_empty:
        return empty_forward(call)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *map(unit_last_stride, call[:3]),
        *call[3:7],
        0.0,  # dropout
        call.is_causal,
        False,  # no debug mask
        **_settings(call),
    )
    return out, lse_from_kernel(lse)


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    if call.is_empty:
        return empty_backward(call)
    with deterministic_kernels():
        grads = torch.ops.aten._flash_attention_backward(
            *map(unit_last_stride, (grad_out, call.q, call.k, call.v)),
            out,
            lse_for_kernel(lse),
            *call[3:7],
            0.0,  # dropout
            call.is_causal,
            torch.zeros(2, dtype=torch.uint64, device=call.q.device),  # random state of the dropout, unused
            torch.empty(0, device=call.q.device),
            **_settings(call),
        )
    grad_q, grad_k, grad_v = (grad.contiguous() for grad in grads)
    return grad_q, grad_k, grad_v
