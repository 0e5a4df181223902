"""PyTorch backend, CPU: tiles of each sequence, in float32 (float64 for float64) for any input dtype."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.attention.dense import attend, attend_backward, out_of_window, softmax_delta
from slap_fast.ops.tensor_checks import accumulator

# Elements of the score tile held at once: 16 MiB in float32, about a core's share of cache.
_MAX_SCORES = 1 << 22
_WINDOWED_ROWS = 128


def unavailable() -> None:
    """None: it serves wherever PyTorch does."""


def rejects(*, device: torch.device, **_traits: object) -> str | None:
    """Why it cannot serve tensors on `device`; None if it can."""
    return None if device.type == "cpu" else f"it reads the offsets on the host, and the tensors are on {device}"


def tiles(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, left: int, right: int, max_pairs: int = _MAX_SCORES
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows of queries, the keys that they can see, and which pairs are hidden.

    Unless the window is limited on both sides, a tile has at most about `max_pairs` pairs.
    """
    offsets_q, offsets_k = pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist())
    for (begin_q, end_q), (begin_k, end_k) in zip(offsets_q, offsets_k, strict=True):
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


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """See `Backend.forward`."""
    q, k, v, cu_seqlens_q, cu_seqlens_k, _, _, left, right, scale = call
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
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Backend.backward`."""
    q, k, v, cu_seqlens_q, cu_seqlens_k, _, _, left, right, scale = call
    heads, kv_heads, dtype = q.shape[1], k.shape[1], lse.dtype
    delta = softmax_delta(grad_out, grad_lse, out)
    grad_q = q.new_empty(q.shape)
    # Neighboring tiles share keys: their sums are kept at accumulator precision.
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
