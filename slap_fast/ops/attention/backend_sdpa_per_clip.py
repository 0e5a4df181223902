"""Packed attention by the CPU kernel of `scaled_dot_product_attention`, clip by clip, and window by window in a clip.

The kernel is called below SDPA, which keeps the log-sum-exp to itself and whose backward would run the forward again.
It is PyTorch's fastest where a window is as wide as the clip; where it is narrow, the mask that it reads costs more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slap_fast.ops.attention.backend_torch import tiles
from slap_fast.ops.tensor_checks import accumulator


def unavailable() -> str | None:
    return None


def rejects(*, device: torch.device, return_lse: bool, needs_grad: bool, **_traits: object) -> str | None:
    """Why the kernel cannot serve such a call, None if it can."""
    if device.type != "cpu":
        return f"the tensors are on {device}; it serves the CPU"
    if return_lse and needs_grad:
        return "its backward takes no gradient of the log-sum-exp"
    return None


def _heads_first(x: Tensor, group: int = 1) -> Tensor:
    """`[M, H, D]` to `[1, H * group, M, D]`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    x = x.transpose(0, 1)[None]
    return x if group == 1 else x.repeat_interleave(group, dim=1)


def _mask(hidden: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if hidden is None else torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)


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
    group = q.shape[1] // k.shape[1]
    out = q.new_zeros(q.shape)
    lse = q.new_full((q.shape[1], q.shape[0]), -math.inf, dtype=accumulator(q.dtype))
    for rows, columns, hidden in tiles(cu_seqlens_q, cu_seqlens_k, left, right):
        if columns.start == columns.stop:
            continue
        tile_out, tile_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _heads_first(q[rows]),
            _heads_first(k[columns], group),
            _heads_first(v[columns], group),
            attn_mask=_mask(hidden, q.dtype),
            scale=scale,
        )
        out[rows] = tile_out[0].transpose(0, 1)
        # The kernel leaves 0 for a query without keys.
        lse[:, rows] = tile_lse[0] if hidden is None else tile_lse[0].masked_fill(hidden.all(-1), -math.inf)
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
    group = q.shape[1] // k.shape[1]
    grad_q = q.new_zeros(q.shape)
    # Neighbouring tiles share keys, so their sums are kept at accumulator precision.
    grad_k, grad_v = k.new_zeros(k.shape, dtype=lse.dtype), v.new_zeros(v.shape, dtype=lse.dtype)
    for rows, columns, hidden in tiles(cu_seqlens_q, cu_seqlens_k, left, right):
        if columns.start == columns.stop:
            continue
        tile_lse = lse[:, rows][None]
        tile_grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _heads_first(grad_out[rows]),
            _heads_first(q[rows]),
            _heads_first(k[columns], group),
            _heads_first(v[columns], group),
            _heads_first(out[rows]),
            tile_lse.masked_fill(tile_lse == -math.inf, 0.0),
            0.0,  # dropout
            False,  # causal only through the mask
            attn_mask=_mask(hidden, q.dtype),
            scale=scale,
        )
        grad_q[rows] = tile_grads[0][0].transpose(0, 1)
        for total, part in ((grad_k, tile_grads[1]), (grad_v, tile_grads[2])):
            total[columns] += part[0].to(total.dtype).unflatten(0, (-1, group)).sum(1).transpose(0, 1)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)
