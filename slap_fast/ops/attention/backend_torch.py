"""Packed attention in plain PyTorch, clip by clip: the lengths are read on the host, so the tensors must be there.

Computes in float32 (float64 for float64), whatever the inputs' dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from slap_fast.ops.attention.call import softmax_delta
from slap_fast.ops.attention.dense import attend, attend_backward, out_of_window
from slap_fast.ops.tensor_checks import accumulator

# Elements of the score tile that is held at once: 16 MiB in float32, about a core's share of cache.
_MAX_SCORES = 1 << 22
_WINDOWED_ROWS = 128


def unavailable() -> str | None:
    return None


def rejects(*, device: torch.device, **_traits: object) -> str | None:
    """Why this backend cannot serve tensors on `device`, None if it can."""
    return None if device.type == "cpu" else f"it reads the lengths on the host, and the tensors are on {device}"


def tiles(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, left: int, right: int, max_pairs: int = _MAX_SCORES
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """The blocks of queries with the keys they can see: nothing outside the window or the clip is touched.

    Without a window on both sides a block has at most about `max_pairs` pairs.
    """
    offsets_q, offsets_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for clip in range(len(offsets_q) - 1):
        begin_q, end_q = offsets_q[clip], offsets_q[clip + 1]
        begin_k, end_k = offsets_k[clip], offsets_k[clip + 1]
        shift = (end_k - begin_k) - (end_q - begin_q)
        rows = max(1, max_pairs // max(1, end_k - begin_k))
        if left >= 0 and right >= 0:
            rows = max(_WINDOWED_ROWS, left + right + 1)
        for first in range(0, end_q - begin_q, rows):
            last = min(first + rows, end_q - begin_q)
            first_key = max(0, first + shift - left) if left >= 0 else 0
            last_key = min(end_k - begin_k, last + shift + right) if right >= 0 else end_k - begin_k
            last_key = max(last_key, first_key)
            hidden = out_of_window(
                torch.arange(first + shift, last + shift)[:, None], torch.arange(first_key, last_key), left, right
            )
            yield slice(begin_q + first, begin_q + last), slice(begin_k + first_key, begin_k + last_key), hidden


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
    heads, kv_heads, dtype = q.shape[1], k.shape[1], accumulator(q.dtype)
    out, lse = q.new_empty(q.shape), q.new_empty(heads, q.shape[0], dtype=dtype)
    grouped = (kv_heads, heads // kv_heads)
    for rows, columns, hidden in tiles(cu_seqlens_q, cu_seqlens_k, left, right, _MAX_SCORES // heads):
        tile_q = q[rows].to(dtype).transpose(0, 1).unflatten(0, grouped)  # [Hk, G, M, D]
        tile_k = k[columns].to(dtype).transpose(0, 1).unsqueeze(1)  # [Hk, 1, N, D]
        tile_v = v[columns].to(dtype).transpose(0, 1).unsqueeze(1)
        tile_out, tile_lse = attend(tile_q, tile_k, tile_v, hidden, scale)
        out[rows] = tile_out.flatten(0, 1).transpose(0, 1).to(out.dtype)
        lse[:, rows] = tile_lse.flatten(0, 1)
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
    heads, kv_heads, dtype = q.shape[1], k.shape[1], lse.dtype
    delta = softmax_delta(grad_out, grad_lse, out)
    grad_q = q.new_empty(q.shape)
    # Neighbouring tiles share keys, so their sums are kept at accumulator precision.
    grad_k, grad_v = k.new_zeros(k.shape, dtype=dtype), v.new_zeros(v.shape, dtype=dtype)
    grouped = (kv_heads, heads // kv_heads)
    for rows, columns, hidden in tiles(cu_seqlens_q, cu_seqlens_k, left, right, _MAX_SCORES // heads):
        tile_grads = attend_backward(
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
