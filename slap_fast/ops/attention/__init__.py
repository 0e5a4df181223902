"""Attention over packed sequences of different lengths: bidirectional, windowed, causal or cross, no padding token.

The conventions are flash-attn's `flash_attn_varlen_func`: windows are inclusive on both sides, -1 means unlimited, and
where a clip has unequal query and key lengths the last query is aligned with the last key.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.attention import (
    backend_flash_attn_2 as varlen_attention_flash2,
)
from slap_fast.ops.attention import (
    backend_flash_attn_3 as varlen_attention_flash3,
)
from slap_fast.ops.attention import (
    backend_flash_attn_4 as varlen_attention_flash4,
)
from slap_fast.ops.attention import (
    backend_native as varlen_attention_native,
)
from slap_fast.ops.attention import (
    backend_sdpa_per_clip as varlen_attention_sdpa,
)
from slap_fast.ops.attention import (
    backend_torch as varlen_attention_torch,
)
from slap_fast.ops.attention import (
    backend_torch_efficient as varlen_attention_torch_efficient,
)
from slap_fast.ops.attention import (
    backend_torch_padded as varlen_attention_torch_padded,
)
from slap_fast.ops.attention import (
    backend_torch_varlen as varlen_attention_torch_varlen,
)
from slap_fast.ops.attention import (
    backend_triton as varlen_attention_triton,
)
from slap_fast.ops.attention import preference as preference
from slap_fast.ops.attention.call import VarlenAttentionBackend
from slap_fast.ops.attention.validation import validate, validate_backward
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.tensor_checks import accumulator

# In the order of preference where none was measured.
BACKENDS: dict[str, VarlenAttentionBackend] = {
    "native": varlen_attention_native,
    "torch": varlen_attention_torch,
    "sdpa_per_clip": varlen_attention_sdpa,
    "flash_attn_4": varlen_attention_flash4,
    "flash_attn_3": varlen_attention_flash3,
    "flash_attn_2": varlen_attention_flash2,
    "triton": varlen_attention_triton,
    "torch_varlen": varlen_attention_torch_varlen,
    "torch_efficient": varlen_attention_torch_efficient,
    "torch_padded": varlen_attention_torch_padded,
}
dispatch.register(
    "varlen_attention",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
    dispatch.Preference(preference.order, preference.describe),
)

_SETTINGS = (
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, SymInt left, SymInt right, "
    "float scale, str backend"
)


def _select(
    requested: str, q: Tensor, k: Tensor, cross: bool, max_seqlen: int, left: int, right: int, **traits: bool
) -> str:
    return dispatch.select(
        "varlen_attention",
        requested,
        device=q.device,
        dtype=q.dtype,
        head_dim=q.shape[2],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        left=left,
        right=right,
        cross=cross,
        is_long=max_seqlen > preference.LONGEST_CLIP,
        **traits,
    )


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *settings: Any) -> tuple:
    max_seqlen_q, max_seqlen_k, left, right, scale, backend = settings
    checked = validate(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right)
    cross = cu_seqlens_k.data_ptr() != cu_seqlens_q.data_ptr()
    # What was selected with a gradient in view is called without.
    chosen = _select(backend, q, k, cross, max_seqlen_q, left, right, return_lse=False, needs_grad=False)
    return q, k, v, *checked, max_seqlen_q, max_seqlen_k, left, right, scale, chosen


def _check_backward(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple:
    checked = _check(q, k, v, *settings)
    validate_backward(grad_out, grad_lse, q, out, lse)
    return grad_out, grad_lse, *checked[:3], out, lse, *checked[3:]


@custom_op(
    "slap_fast::varlen_attention",
    schema=f"(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> (Tensor, Tensor)",
    check=_check,
    rule=autocast.low,
)
def _varlen_attention(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *arguments, backend = settings
    return BACKENDS[backend].forward(q, k, v, *arguments)


@_varlen_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=accumulator(q.dtype))


@custom_op(
    "slap_fast::varlen_attention_backward",
    schema="(Tensor grad_out, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    check=_check_backward,
)
def _varlen_attention_backward(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *arguments, backend = settings
    return BACKENDS[backend].backward(grad_out, grad_lse, q, k, v, out, lse, *arguments)


@_varlen_attention_backward.register_fake
def _(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    grads = _varlen_attention_backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * (2 + len(ctx.settings))


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
        cu_seqlens_q: `[N + 1]` int32 or int64 offsets from 0 to Tq, on the device of `q`; kernels read int32.
        cu_seqlens_k: the same for keys and values; None: those of the queries.
        max_seqlen_q: the longest query sequence, a host int.
        max_seqlen_k: the longest key sequence; None: that of the queries.
        window: keys visible to the left and to the right of a query, both inclusive; -1 is unlimited, and
            `(-1, 0)` is causal. With unequal lengths the last query stands on the last key.
        scale: multiplies the scores; None: D ** -0.5.
        return_lse: return the log-sum-exp of the scaled scores too.
        backend: the name of one that `slap-fast info` lists, or "auto": the fastest for such a call that serves, by the
            benchmark on such a device, or where that never ran, the first.

    Returns:
        `[Tq, H, D]` in the dtype of `q`; with `return_lse` also `[H, Tq]` float32 (float64 for float64). A query that
        sees no key gives 0 and an lse of -inf. Both are differentiable.

    Raises:
        ValueError: shapes, dtypes, devices or windows that do not fit, or, on the CPU, offsets that are not monotone
            from 0 to the total.

    Offsets on a GPU are not read back, for that would be a wait. By the Triton kernels the first is then taken as 0 and
    one beyond the total as the total; tokens after the last belong to no sequence, and give 0, an lse of -inf and
    gradients of 0. Where offsets fall, a token that several sequences claim holds the result of one of them. Nothing
    is read or written outside the tensors, and every row is written. Other libraries' kernels promise none of this.
    """
    q, k, v = autocast.cast(autocast.low, q, k, v)
    if cu_seqlens_k is None:
        cu_seqlens_k, max_seqlen_k = cu_seqlens_q, max_seqlen_q
    if max_seqlen_k is None:
        raise ValueError("max_seqlen_k is None; pass the longest key sequence along with cu_seqlens_k")
    left, right = window
    cross = cu_seqlens_k is not cu_seqlens_q
    cu_seqlens_q, cu_seqlens_k = validate(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right)
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    chosen = _select(backend, q, k, cross, max_seqlen_q, left, right, return_lse=return_lse, needs_grad=needs_grad)
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
