"""PyTorch backend, any device: a padded dense batch, in float32 (float64 for float64) for any input dtype.

No host synchronization. It holds all scores of the padded batch at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.attention.dense import attend, attend_backward, out_of_window, softmax_delta
from slap_fast.ops.packed import item_of_each
from slap_fast.ops.tensor_checks import accumulator


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(**_traits: object) -> None:
    """None: it serves any call."""


class Padding:
    """Maps packed positions to `[N, max_seqlen]` slots and back, without reading a length from the device."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, total: int) -> None:
        offsets = cu_seqlens.long()
        lengths = offsets.diff()
        self.slot = torch.arange(max_seqlen, device=offsets.device)
        self.valid = self.slot < lengths[:, None]  # [N, max_seqlen]
        self.position = (offsets[:-1, None] + self.slot).clamp(0, max(total - 1, 0))
        self.item = item_of_each(offsets, total)
        self.index = torch.arange(total, device=offsets.device) - offsets[self.item]
        self.lengths = lengths

    def pad(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`[T, H, D]` to `[N, H, max_seqlen, D]`, zero where there is no token."""
        padded = x[self.position].to(dtype)  # [N, max_seqlen, H, D]
        return padded.masked_fill(~self.valid[:, :, None, None], 0.0).transpose(1, 2)

    def pack(self, x: Tensor) -> Tensor:
        """`[N, H, max_seqlen, ...]` to `[T, H, ...]`."""
        return x.transpose(1, 2)[self.item, self.index]


def _padded_hidden(queries: Padding, keys: Padding, left: int, right: int) -> Tensor:
    """`[N, 1, 1, max_seqlen_q, max_seqlen_k]`, True where a key is padding or outside the window."""
    hidden = ~keys.valid[:, None, :]
    shift = (keys.lengths - queries.lengths)[:, None, None]
    outside = out_of_window(queries.slot[:, None] + shift, keys.slot.expand(1, 1, -1), left, right)
    if outside is not None:
        hidden = hidden | outside
    return hidden[:, None, None]


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right, scale = call
    dtype = accumulator(q.dtype)
    if call.is_empty:
        return torch.zeros_like(q), q.new_full((q.shape[1], q.shape[0]), -math.inf, dtype=dtype)
    grouped = (k.shape[1], q.shape[1] // k.shape[1])
    queries = Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    keys = Padding(cu_seqlens_k, max_seqlen_k, k.shape[0])
    out, lse = attend(
        queries.pad(q, dtype).unflatten(1, grouped),
        keys.pad(k, dtype).unsqueeze(2),
        keys.pad(v, dtype).unsqueeze(2),
        _padded_hidden(queries, keys, left, right),
        scale,
    )
    return queries.pack(out.flatten(1, 2)).to(q.dtype), queries.pack(lse.flatten(1, 2)).t().contiguous()


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right, scale = call
    if call.is_empty:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grouped = (k.shape[1], q.shape[1] // k.shape[1])
    queries = Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    keys = Padding(cu_seqlens_k, max_seqlen_k, k.shape[0])
    delta = softmax_delta(grad_out, grad_lse, out)
    grad_q, grad_k, grad_v = attend_backward(
        queries.pad(grad_out, lse.dtype).unflatten(1, grouped),
        queries.pad(delta.t().unsqueeze(-1), lse.dtype).squeeze(-1).unflatten(1, grouped),
        queries.pad(q, lse.dtype).unflatten(1, grouped),
        keys.pad(k, lse.dtype).unsqueeze(2),
        keys.pad(v, lse.dtype).unsqueeze(2),
        queries.pad(lse.t().unsqueeze(-1), lse.dtype).squeeze(-1).unflatten(1, grouped),
        _padded_hidden(queries, keys, left, right),
        scale,
    )
    return (
        queries.pack(grad_q.flatten(1, 2)).to(q.dtype),
        keys.pack(grad_k.sum(2)).to(k.dtype),
        keys.pack(grad_v.sum(2)).to(v.dtype),
    )
