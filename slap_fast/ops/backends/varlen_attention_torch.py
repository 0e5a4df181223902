"""Packed attention in plain PyTorch: clip by clip where the lengths are on the host, else padded to a dense batch.

Both compute in float32 (float64 for float64), whatever the inputs' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of the score tile that the per-clip backend holds at once: 16 MiB in float32, about a core's share of cache.
_MAX_SCORES = 1 << 22
_WINDOWED_ROWS = 128


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of `[..., G, M, D]` queries (G query heads share a key head) over `[..., 1, N, D]` keys.

    `hidden` is True where a key is out of a query's sight. A query that sees no key gives 0 and an lse of -inf.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).mul_(scale)
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    lse = scores.logsumexp(-1)
    finite = lse.masked_fill(lse == -math.inf, 0.0)
    return torch.matmul(scores.sub_(finite.unsqueeze(-1)).exp_(), v), lse


def _attend_backward(
    grad_out: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, hidden: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_attend`; those of keys and values are still apart for the G query heads that share them."""
    probabilities = torch.matmul(q, k.transpose(-1, -2)).mul_(scale)
    if hidden is not None:
        probabilities.masked_fill_(hidden, -math.inf)
    finite = lse.masked_fill(lse == -math.inf, 0.0)
    probabilities = probabilities.sub_(finite.unsqueeze(-1)).exp_()
    grad_v = torch.matmul(probabilities.transpose(-1, -2), grad_out)
    grad_scores = torch.matmul(grad_out, v.transpose(-1, -2)).sub_(delta.unsqueeze(-1)).mul_(probabilities).mul_(scale)
    return torch.matmul(grad_scores, k), torch.matmul(grad_scores.transpose(-1, -2), q), grad_v


def _out_of_window(query: Tensor, key: Tensor, left: int, right: int) -> Tensor | None:
    """True where `key` lies outside the window of `query`; both are positions aligned to the clip's last key."""
    if left < 0 and right < 0:
        return None
    distance = key - query
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if left >= 0:
        hidden |= distance < -left
    if right >= 0:
        hidden |= distance > right
    return hidden


def _tiles(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, heads: int, left: int, right: int
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """The blocks of queries with the keys they can see: nothing outside the window or the clip is touched."""
    offsets_q, offsets_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for clip in range(len(offsets_q) - 1):
        begin_q, end_q = offsets_q[clip], offsets_q[clip + 1]
        begin_k, end_k = offsets_k[clip], offsets_k[clip + 1]
        shift = (end_k - begin_k) - (end_q - begin_q)
        rows = max(1, _MAX_SCORES // (heads * max(1, end_k - begin_k)))
        if left >= 0 and right >= 0:
            rows = max(_WINDOWED_ROWS, left + right + 1)
        for first in range(0, end_q - begin_q, rows):
            last = min(first + rows, end_q - begin_q)
            first_key = max(0, first + shift - left) if left >= 0 else 0
            last_key = min(end_k - begin_k, last + shift + right) if right >= 0 else end_k - begin_k
            last_key = max(last_key, first_key)
            hidden = _out_of_window(
                torch.arange(first + shift, last + shift)[:, None], torch.arange(first_key, last_key), left, right
            )
            yield slice(begin_q + first, begin_q + last), slice(begin_k + first_key, begin_k + last_key), hidden


def forward_per_clip(
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
    heads, kv_heads, dtype = q.shape[1], k.shape[1], accumulator(q.dtype)
    out, lse = q.new_empty(q.shape), q.new_empty(heads, q.shape[0], dtype=dtype)
    grouped = (kv_heads, heads // kv_heads)
    for rows, columns, hidden in _tiles(cu_seqlens_q, cu_seqlens_k, heads, left, right):
        tile_q = q[rows].to(dtype).transpose(0, 1).unflatten(0, grouped)  # [Hk, G, M, D]
        tile_k = k[columns].to(dtype).transpose(0, 1).unsqueeze(1)  # [Hk, 1, N, D]
        tile_v = v[columns].to(dtype).transpose(0, 1).unsqueeze(1)
        tile_out, tile_lse = _attend(tile_q, tile_k, tile_v, hidden, scale)
        out[rows] = tile_out.flatten(0, 1).transpose(0, 1).to(out.dtype)
        lse[:, rows] = tile_lse.flatten(0, 1)
    return out, lse


def backward_per_clip(
    grad_out: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, dtype = q.shape[1], k.shape[1], lse.dtype
    grad_q = q.new_empty(q.shape)
    # Neighbouring tiles share keys, so their sums are kept at accumulator precision.
    grad_k, grad_v = k.new_zeros(k.shape, dtype=dtype), v.new_zeros(v.shape, dtype=dtype)
    grouped = (kv_heads, heads // kv_heads)
    for rows, columns, hidden in _tiles(cu_seqlens_q, cu_seqlens_k, heads, left, right):
        tile_grads = _attend_backward(
            grad_out[rows].to(dtype).transpose(0, 1).unflatten(0, grouped),
            delta[:, rows].unflatten(0, grouped),
            q[rows].to(dtype).transpose(0, 1).unflatten(0, grouped),
            k[columns].to(dtype).transpose(0, 1).unsqueeze(1),
            v[columns].to(dtype).transpose(0, 1).unsqueeze(1),
            lse[:, rows].unflatten(0, grouped),
            hidden,
            scale,
        )
        grad_q[rows] = tile_grads[0].flatten(0, 1).transpose(0, 1).to(q.dtype)
        grad_k[columns] += tile_grads[1].sum(1).transpose(0, 1)
        grad_v[columns] += tile_grads[2].sum(1).transpose(0, 1)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


class _Padding:
    """How packed positions map to `[N, max_seqlen]` slots and back, without asking the device for a length."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, total: int) -> None:
        offsets = cu_seqlens.long()
        lengths = offsets.diff()
        self.slot = torch.arange(max_seqlen, device=offsets.device)
        self.valid = self.slot < lengths[:, None]  # [N, max_seqlen]
        self.position = (offsets[:-1, None] + self.slot).clamp_max(max(total - 1, 0))
        self.clip = torch.repeat_interleave(lengths, output_size=total)
        self.index = torch.arange(total, device=offsets.device) - offsets[self.clip]
        self.lengths = lengths

    def pad(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`[T, H, D]` to `[N, H, max_seqlen, D]`, zero where there is no token."""
        padded = x[self.position].to(dtype)  # [N, max_seqlen, H, D]
        return padded.masked_fill(~self.valid[:, :, None, None], 0.0).transpose(1, 2)

    def pack(self, x: Tensor) -> Tensor:
        """`[N, H, max_seqlen, ...]` to `[T, H, ...]`."""
        return x.transpose(1, 2)[self.clip, self.index]


def _padded_hidden(queries: _Padding, keys: _Padding, left: int, right: int) -> Tensor:
    """`[N, 1, 1, max_seqlen_q, max_seqlen_k]`, True where a key is absent or outside the window."""
    hidden = ~keys.valid[:, None, :]
    shift = (keys.lengths - queries.lengths)[:, None, None]
    outside = _out_of_window(queries.slot[:, None] + shift, keys.slot.expand(1, 1, -1), left, right)
    if outside is not None:
        hidden = hidden | outside
    return hidden[:, None, None]


def forward_padded(
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
    dtype = accumulator(q.dtype)
    if q.shape[0] == 0 or k.shape[0] == 0:
        return torch.zeros_like(q), q.new_full((q.shape[1], q.shape[0]), -math.inf, dtype=dtype)
    grouped = (k.shape[1], q.shape[1] // k.shape[1])
    queries = _Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    keys = _Padding(cu_seqlens_k, max_seqlen_k, k.shape[0])
    out, lse = _attend(
        queries.pad(q, dtype).unflatten(1, grouped),
        keys.pad(k, dtype).unsqueeze(2),
        keys.pad(v, dtype).unsqueeze(2),
        _padded_hidden(queries, keys, left, right),
        scale,
    )
    return queries.pack(out.flatten(1, 2)).to(q.dtype), queries.pack(lse.flatten(1, 2)).t().contiguous()


def backward_padded(
    grad_out: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.shape[0] == 0 or k.shape[0] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grouped = (k.shape[1], q.shape[1] // k.shape[1])
    queries = _Padding(cu_seqlens_q, max_seqlen_q, q.shape[0])
    keys = _Padding(cu_seqlens_k, max_seqlen_k, k.shape[0])
    grad_q, grad_k, grad_v = _attend_backward(
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
