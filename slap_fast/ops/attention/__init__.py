"""Attention over packed sequences of different lengths: bidirectional, windowed, causal or cross; no padding tokens.

    out = varlen_attention(q, k, v, cu_seqlens, max_seqlen_q=750, window=(48, 48))    # [T, H, D] each -> [T, H, D]

The conventions are those of flash-attn's `flash_attn_varlen_func`: windows are inclusive on both sides, -1 means
unlimited, and where a sequence has unequal query and key lengths the last query is aligned with the last key.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.attention import (
    backend_flash_attn_2,
    backend_flash_attn_3,
    backend_flash_attn_4,
    backend_native,
    backend_torch,
    backend_torch_efficient,
    backend_torch_padded,
    backend_torch_varlen,
    backend_triton,
)
from slap_fast.ops.attention.call import (
    AttentionCall,
    Backend,
    check,
    check_backward,
    default_scale,
    key_sequences,
    select,
    validate,
)
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.tensor_checks import accumulator

# In order of preference: on a CPU native, torch, torch_padded; on a GPU the others, torch_padded last. The CPU order is
# measured (benchmarks/results/attention-cpu.json: AMD EPYC Turin, AVX-512 with bf16, PyTorch 2.13): native was the
# fastest in all 20 cases, torch took 2.3 to 11 times as long, torch_padded 4.6 to 210 times. No GPU has measured the
# others: the newest library comes first.
BACKENDS: dict[str, Backend] = {
    "native": backend_native,
    "torch": backend_torch,
    "flash_attn_4": backend_flash_attn_4,
    "flash_attn_3": backend_flash_attn_3,
    "flash_attn_2": backend_flash_attn_2,
    "triton": backend_triton,
    "torch_varlen": backend_torch_varlen,
    "torch_efficient": backend_torch_efficient,
    "torch_padded": backend_torch_padded,
}
dispatch.register(
    "varlen_attention",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::varlen_attention", check=check, rule=autocast.low)
def _varlen_attention(call: AttentionCall, backend: str) -> tuple[Tensor, Tensor]:
    return BACKENDS[backend].forward(call)


@_varlen_attention.register_fake
def _(call: AttentionCall, backend: str) -> tuple[Tensor, Tensor]:
    q = call.q
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=accumulator(q.dtype))


@custom_op("slap_fast::varlen_attention_backward", check=check_backward)
def _varlen_attention_backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKENDS[backend].backward(call, out, lse, grad_out, grad_lse)


@_varlen_attention_backward.register_fake
def _(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = call.q, call.k, call.v
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[AttentionCall, str], output: tuple[Tensor, Tensor]) -> None:
    call, ctx.backend = inputs
    ctx.save_for_backward(*call[:5], *output)
    ctx.settings = call[5:]


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    call = AttentionCall(*tensors, *ctx.settings)
    grads = _varlen_attention_backward(call, out, lse, grad_out, grad_lse, ctx.backend)
    return *grads, None, None, None, None, None, None, None, None


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
        cu_seqlens_q: `[N + 1]` int32 or int64 offsets from 0 to Tq, on the device of `q`; int64 is copied to int32.
        cu_seqlens_k: the same for keys and values; None: `cu_seqlens_q`.
        max_seqlen_q: longest query sequence, a host int.
        max_seqlen_k: longest key sequence; may be None if `cu_seqlens_k` is.
        window: keys visible to the left and to the right of a query, both inclusive; -1 is unlimited, and
            `(-1, 0)` is causal. With unequal lengths the last query is aligned with the last key.
        scale: factor of the scores; None: D ** -0.5.
        return_lse: also return the log-sum-exp of the scaled scores.
        backend: "auto" for the first that can serve, or a name that `slap-fast info` lists.

    Returns:
        `[Tq, H, D]` in the dtype of `q`; with `return_lse` also `[H, Tq]` float32 (float64 for float64). A query
        without visible keys gives 0 and an lse of -inf. Both are differentiable.

    Raises:
        ValueError: shapes, dtypes, devices or windows that do not fit, or, on the CPU, offsets that do not rise from 0
            to the total.

    Offsets on a GPU are not read back: that would be a synchronization. With malformed ones the Triton kernels read the
    first as 0 and any beyond the total as the total. Tokens after the last offset belong to no sequence: they give 0,
    an lse of -inf and gradients of 0. Where offsets decrease, a token in several sequences gets the result of one of
    them. Nothing is read or written outside the tensors, and every row is written. Kernels of other libraries guarantee
    none of this.
    """
    q, k, v = autocast.cast(autocast.low, q, k, v)
    offsets_k, longest_k = key_sequences(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if scale is None:
        scale = default_scale(q)
    left, right = window
    call = validate(AttentionCall(q, k, v, cu_seqlens_q, offsets_k, max_seqlen_q, longest_k, left, right, scale))
    cross = offsets_k is not cu_seqlens_q
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    chosen = select(call, backend, cross=cross, return_lse=return_lse, needs_grad=needs_grad)
    out, lse = _varlen_attention(call, chosen)
    return (out, lse) if return_lse else out
