"""What `varlen_attention` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.tensor_checks import accumulator, require, require_like


def validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    left: int,
    right: int,
) -> tuple[Tensor, Tensor]:
    """Both offsets in int32, or the ValueError that `varlen_attention` documents."""
    _validate_tensors(q, k, v)
    if left < -1 or right < -1:
        raise ValueError(f"window is {(left, right)}; each side is a count of tokens, or -1 for unlimited")
    checked_q = checked_offsets(
        "cu_seqlens_q", cu_seqlens_q, q.shape[0], q.device, torch.int32, of="tokens of q", longest=max_seqlen_q
    )
    if cu_seqlens_k is cu_seqlens_q and q.shape[0] == k.shape[0] and max_seqlen_q <= max_seqlen_k:
        return checked_q, checked_q
    checked_k = checked_offsets(
        "cu_seqlens_k", cu_seqlens_k, k.shape[0], k.device, torch.int32, of="tokens of k", longest=max_seqlen_k
    )
    if checked_q.shape != checked_k.shape:
        raise ValueError(
            f"cu_seqlens_q names {checked_q.shape[0] - 1} sequences, cu_seqlens_k {checked_k.shape[0] - 1}"
        )
    return checked_q, checked_k


def _validate_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; "
            "pass [Tq, H, D], [Tk, Hk, D], [Tk, Hk, D]"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads, which is not a multiple of the {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; pass one floating-point dtype")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v are on {q.device}, {k.device}, {v.device}; move them to one device")


def validate_backward(grad_out: Tensor, grad_lse: Tensor, q: Tensor, out: Tensor, lse: Tensor) -> None:
    """Raise the ValueError for what the registered backward takes beside the inputs of the forward."""
    require_like("grad_out", grad_out, q)
    require_like("out", out, q)
    for name, x in (("grad_lse", grad_lse), ("lse", lse)):
        require(name, x, (q.shape[1], q.shape[0]), accumulator(q.dtype), q.device)
