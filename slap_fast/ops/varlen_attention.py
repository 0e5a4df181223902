"""Attention over packed sequences of different lengths: bidirectional, windowed, causal or cross, no padding token.

The conventions are flash-attn's `flash_attn_varlen_func`: windows are inclusive on both sides, -1 means unlimited, and
where a clip has unequal query and key lengths the last query is aligned with the last key.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, overload

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.backends import varlen_attention_torch as reference


@torch.library.custom_op("slap_fast::varlen_attention", mutates_args=())
def _varlen_attention(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    forward = reference.forward_per_clip if backend == "torch" else reference.forward_padded
    return forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right, scale)


@_varlen_attention.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=reference.accumulator(q.dtype))


@torch.library.custom_op("slap_fast::varlen_attention_backward", mutates_args=())
def _varlen_attention_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    backward = reference.backward_per_clip if backend == "torch" else reference.backward_padded
    delta = (grad_out.to(lse.dtype) * out.to(lse.dtype)).sum(-1).t() - grad_lse  # [H, T]
    return backward(
        grad_out, delta, q, k, v, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right, scale
    )


@_varlen_attention_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _host_only(*, device: torch.device, **_traits: object) -> str | None:
    return None if device.type == "cpu" else f"it reads the lengths on the host, and the tensors are on {device}"


dispatch.register(
    "varlen_attention",
    [
        dispatch.Backend(name="torch", rejects=_host_only),
        # No host synchronisation, at the price of padding: what serves on a GPU.
        dispatch.Backend(name="torch_padded"),
    ],
)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *settings = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)
    ctx.settings = settings  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = _varlen_attention_backward(
        grad_out,
        grad_lse,
        q,
        k,
        v,
        out,
        lse,
        cu_seqlens_q,
        cu_seqlens_k,
        *ctx.settings,  # type: ignore[attr-defined]
    )
    return *grads, *[None] * 8


_varlen_attention.register_autograd(_backward, setup_context=_setup_context)


@overload
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int | None = None,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    return_lse: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int | None = None,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    return_lse: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int | None = None,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention inside each of N packed sequences.

    Args:
        q: `[Tq, H, D]` float32, float16, bfloat16 or float64; any strides, as a view of a packed `[T, 3, H, D]` has.
        k: `[Tk, Hk, D]`; H is a multiple of Hk, and H / Hk consecutive query heads share a key head (GQA).
        v: `[Tk, Hk, D]`.
        cu_seqlens_q: `[N + 1]` int32 offsets from 0 to Tq, on the device of `q`.
        cu_seqlens_k: the same for keys and values; None: those of the queries.
        max_seqlen_q: the longest query sequence, a host int.
        max_seqlen_k: the longest key sequence; None: that of the queries.
        window: keys visible to the left and to the right of a query, both inclusive; -1 is unlimited, and
            `(-1, 0)` is causal. With unequal lengths the last query stands on the last key.
        scale: multiplies the scores; None: D ** -0.5.
        return_lse: return the log-sum-exp of the scaled scores too.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[Tq, H, D]` in the dtype of `q`; with `return_lse` also `[H, Tq]` float32 (float64 for float64). A query that
        sees no key gives 0 and an lse of -inf. Both are differentiable.

    Raises:
        ValueError: shapes, dtypes, devices or windows that do not fit, or offsets that are not monotone from 0 to the
            total. Offsets on a GPU are not read back, hence not checked.
    """
    if cu_seqlens_k is None:
        cu_seqlens_k, max_seqlen_k = cu_seqlens_q, max_seqlen_q
    if max_seqlen_k is None:
        raise ValueError("max_seqlen_k is None; pass the longest key sequence along with cu_seqlens_k")
    _validate_tensors(q, k, v)
    left, right = window
    if left < -1 or right < -1:
        raise ValueError(f"window is {window}; each side is a count of tokens, or -1 for unlimited")
    _validate_offsets("q", cu_seqlens_q, max_seqlen_q, q)
    _validate_offsets("k", cu_seqlens_k, max_seqlen_k, k)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q names {cu_seqlens_q.shape[0] - 1} sequences, cu_seqlens_k {cu_seqlens_k.shape[0] - 1}"
        )
    chosen = dispatch.select("varlen_attention", backend, device=q.device, dtype=q.dtype, head_dim=q.shape[2])
    out, lse = _varlen_attention(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        left,
        right,
        q.shape[2] ** -0.5 if scale is None else scale,
        chosen,
    )
    return (out, lse) if return_lse else out


def _validate_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; "
            "pass [Tq, H, D], [Tk, Hk, D], [Tk, Hk, D]"
        )
    if q.shape[1] % k.shape[1]:
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
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != tokens.shape[0]:
        raise ValueError(
            f"cu_seqlens_{name} runs from {offsets[0]} to {offsets[-1]}; it must run from 0 to the "
            f"{tokens.shape[0]} tokens of {name}"
        )
    for item, (begin, end) in enumerate(pairwise(offsets)):
        if not 0 <= end - begin <= max_seqlen:
            raise ValueError(
                f"sequence {item} of cu_seqlens_{name} has length {end - begin}; it must lie between 0 and "
                f"max_seqlen_{name} ({max_seqlen})"
            )
