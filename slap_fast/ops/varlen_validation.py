"""What `varlen_attention` checks at its door."""

from __future__ import annotations

import torch
from torch import Tensor


def validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    window: tuple[int, int],
) -> None:
    """Raise the ValueError that `varlen_attention` documents, if anything does not fit."""
    _validate_tensors(q, k, v)
    if min(window) < -1:
        raise ValueError(f"window is {window}; each side is a count of tokens, or -1 for unlimited")
    _validate_offsets("q", cu_seqlens_q, max_seqlen_q, q)
    if cu_seqlens_k is not cu_seqlens_q or q.shape[0] != k.shape[0]:
        _validate_offsets("k", cu_seqlens_k, max_seqlen_k, k)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q names {cu_seqlens_q.shape[0] - 1} sequences, cu_seqlens_k {cu_seqlens_k.shape[0] - 1}"
        )


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


def _validate_offsets(name: str, cu_seqlens: Tensor, max_seqlen: int, tokens: Tensor) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.shape[0] < 1:
        raise ValueError(
            f"cu_seqlens_{name} is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; pass [N + 1] int32 offsets"
        )
    if cu_seqlens.device != tokens.device:
        raise ValueError(
            f"cu_seqlens_{name} is on {cu_seqlens.device}, {name} on {tokens.device}; move one to the other"
        )
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != tokens.shape[0]:
        raise ValueError(
            f"cu_seqlens_{name} runs from {first} to {last}; it must run from 0 to the "
            f"{tokens.shape[0]} tokens of {name}"
        )
    # In 64 bits: a difference that wraps around could pass for a length.
    lengths = cu_seqlens.long().diff()
    if lengths.numel() == 0:
        return
    shortest, longest = lengths.aminmax()
    if int(shortest) < 0 or int(longest) > max_seqlen:
        item = int(((lengths < 0) | (lengths > max_seqlen)).nonzero()[0])
        raise ValueError(
            f"sequence {item} of cu_seqlens_{name} has length {int(lengths[item])}; it must lie between 0 and "
            f"max_seqlen_{name} ({max_seqlen})"
        )
