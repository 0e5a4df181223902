"""Rotary position embedding of packed queries and keys: one axis (text) or two (time and frequency of audio patches).

Positions follow from `cu_seqlens`; no table of the whole length is ever made. Channels pair as in GPT-NeoX: the first
half of an axis' channels with its second half (RoFormer, arXiv 2104.09864, equation 15; axial as in RoPE-ViT,
arXiv 2403.13298, section 3.2).

    q, k = apply_rotary(q, k, cu_seqlens)                           # [T, H, D] and [T, Hk, D]
    q, k, v = apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=4)  # [T, 3, H, D], one projection's output
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.rotary import (
    backend_native as rotary_native,
)
from slap_fast.ops.rotary import (
    backend_torch as rotary_torch,
)
from slap_fast.ops.rotary import (
    backend_triton as rotary_triton,
)
from slap_fast.ops.tensor_checks import overlaps_itself, require_like, share_memory

# Each writes the rotated q and k to out_q and out_k, which may be q and k themselves:
# (q, k, cu_seqlens, tokens_per_frame, thetas, inverse, out_q, out_k).
_ROTATE: dict[str, Callable[[Tensor, Tensor, Tensor, int, list[float], bool, Tensor, Tensor], None]] = {
    "native": rotary_native.rotate,
    "torch": rotary_torch.rotate,
    "triton": rotary_triton.rotate,
}
dispatch.register(
    "apply_rotary",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=rotary_native.rejects),
        dispatch.Backend("triton", unavailable=rotary_triton.unavailable, rejects=rotary_triton.rejects),
        dispatch.Backend("torch"),
    ],
)


def _chosen(q: Tensor, backend: str) -> str:
    return dispatch.select("apply_rotary", backend, device=q.device, dtype=q.dtype, head_dim=q.shape[2])


def _check(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple:
    cu_seqlens = _validate(q, k, cu_seqlens, tokens_per_frame, thetas)
    return q, k, cu_seqlens, tokens_per_frame, thetas, inverse, _chosen(q, backend)


def _check_inplace_op(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], backend: str
) -> tuple:
    *checked, _, chosen = _check(q, k, cu_seqlens, tokens_per_frame, thetas, False, backend)
    _check_overlap(q, k)
    return *checked, chosen


def _check_unpack(qkv: Tensor, *settings: Any) -> tuple:
    q, k, _ = _parts(qkv)
    return qkv, *_check(q, k, *settings)[2:]


def _check_pack(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple:
    require_like("k", k, q)
    require_like("v", v, q)
    return q, k, v, *_check(q, k, *settings)[2:]


@custom_op("slap_fast::apply_rotary", check=_check, rule=autocast.widest)
def _apply_rotary(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    out_q, out_k = q.new_empty(q.shape), k.new_empty(k.shape)
    _ROTATE[backend](q, k, cu_seqlens, tokens_per_frame, thetas, inverse, out_q, out_k)
    return out_q, out_k


@_apply_rotary.register_fake
def _(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@custom_op("slap_fast::apply_rotary_", mutates_args=("q", "k"), check=_check_inplace_op)
def _apply_rotary_(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], backend: str
) -> None:
    _ROTATE[backend](q, k, cu_seqlens, tokens_per_frame, thetas, False, q, k)


@custom_op("slap_fast::rotary_unpack", check=_check_unpack)
def _unpack(
    qkv: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty(part.shape) for part in qkv.unbind(1))
    _ROTATE[backend](qkv[:, 0], qkv[:, 1], cu_seqlens, tokens_per_frame, thetas, inverse, q, k)
    return q, k, v.copy_(qkv[:, 2])


@_unpack.register_fake
def _(
    qkv: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty(part.shape) for part in qkv.unbind(1))
    return q, k, v


@custom_op("slap_fast::rotary_pack", check=_check_pack, rule=autocast.widest)
def _pack(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    tokens_per_frame: int,
    thetas: list[float],
    inverse: bool,
    backend: str,
) -> Tensor:
    qkv = q.new_empty(q.shape[0], 3, *q.shape[1:])
    _ROTATE[backend](q, k, cu_seqlens, tokens_per_frame, thetas, inverse, qkv[:, 0], qkv[:, 1])
    qkv[:, 2] = v
    return qkv


@_pack.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    tokens_per_frame: int,
    thetas: list[float],
    inverse: bool,
    backend: str,
) -> Tensor:
    return q.new_empty(q.shape[0], 3, *q.shape[1:])


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: object) -> None:
    *_, cu_seqlens, ctx.tokens_per_frame, ctx.thetas, ctx.inverse, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(cu_seqlens)


def _transposed(ctx: torch.autograd.function.FunctionCtx) -> tuple[Tensor, int, list[float], bool, str]:
    """A rotation's transpose is its inverse."""
    (cu_seqlens,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return cu_seqlens, ctx.tokens_per_frame, ctx.thetas, not ctx.inverse, ctx.backend  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    return *_apply_rotary(grad_q, grad_k, *_transposed(ctx)), *[None] * 5


def _unpack_backward(
    ctx: torch.autograd.function.FunctionCtx, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
) -> tuple[Tensor | None, ...]:
    return _pack(grad_q, grad_k, grad_v, *_transposed(ctx)), *[None] * 5


def _pack_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_unpack(grad, *_transposed(ctx)), *[None] * 5


_apply_rotary.register_autograd(_backward, setup_context=_setup_context, twice=True)
_unpack.register_autograd(_unpack_backward, setup_context=_setup_context, twice=True)
_pack.register_autograd(_pack_backward, setup_context=_setup_context, twice=True)


def apply_rotary(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    *,
    tokens_per_frame: int | None = None,
    theta: float | tuple[float, float] = 10_000.0,
    inplace: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by the position of each token in its own sequence.

    Args:
        q: `[T, H, D]` floating point, any strides.
        k: `[T, Hk, D]`, dtype and device of `q`.
        cu_seqlens: `[N + 1]` int32 or int64 offsets rising from 0 to T, on the device of `q`.
        tokens_per_frame: None for one axis, the position in the sequence. Else two axes: the first half of the
            channels turns with the frame, `position // tokens_per_frame`, the second half with the row in it,
            `position % tokens_per_frame`.
        theta: base of the geometric series of wavelengths; with two axes a pair `(time, frequency)`, or one for both.
        inplace: overwrite `q` and `k`, which share no memory, and return them. Only where no gradient is recorded:
            PyTorch gives the gradient of a view that was changed in place by copying the gradient of all it views, once
            for `q` and once for `k`, which costs more than it saves. For training there is `apply_rotary_qkv`.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        The rotated queries and keys, contiguous tensors of the same shapes and dtype, or with `inplace` `q` and `k`.
        The mathematics is float32 (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a head dimension that does not split into pairs, offsets
            on the CPU that do not rise from 0 to T, or `inplace` where a gradient is recorded or memory overlaps.

    Offsets on a GPU are not read back, hence not checked. Whatever they are, the Triton kernel turns every token, by
    its distance from one of them: tokens after the last as if the last sequence went on.
    """
    if not inplace:
        q, k = autocast.cast(autocast.widest, q, k)
    per_frame, thetas = _axes(tokens_per_frame, theta)
    cu_seqlens = _validate(q, k, cu_seqlens, per_frame, thetas)
    chosen = _chosen(q, backend)
    if not inplace:
        return _apply_rotary(q, k, cu_seqlens, per_frame, thetas, False, chosen)
    _check_inplace(q, k)
    _apply_rotary_(q, k, cu_seqlens, per_frame, thetas, chosen)
    return q, k


def apply_rotary_qkv(
    qkv: Tensor,
    cu_seqlens: Tensor,
    *,
    tokens_per_frame: int | None = None,
    theta: float | tuple[float, float] = 10_000.0,
    inplace: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the output of one projection to queries, keys and values, the first two rotated as by `apply_rotary`.

    One pass forward, and one backward that writes the gradient of `qkv` as a whole. `apply_rotary` on its views is as
    fast, but then the values keep all of `qkv` alive for the backward pass beside the rotated tensors, five thirds of
    what these take: here they are copied.

    Args:
        qkv: `[T, 3, H, D]` floating point, any strides.
        cu_seqlens: as for `apply_rotary`.
        tokens_per_frame: as for `apply_rotary`.
        theta: as for `apply_rotary`.
        inplace: rotate within `qkv` and return views of it. Only where no gradient is recorded.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        Rotated queries, rotated keys and values, each `[T, H, D]`: contiguous, or with `inplace` views of `qkv`.

    Raises:
        ValueError: as for `apply_rotary`.
    """
    q, k, v = _parts(qkv)
    per_frame, thetas = _axes(tokens_per_frame, theta)
    cu_seqlens = _validate(q, k, cu_seqlens, per_frame, thetas)
    chosen = _chosen(q, backend)
    if not inplace:
        return _unpack(qkv, cu_seqlens, per_frame, thetas, False, chosen)
    _check_inplace(q, k)
    _apply_rotary_(q, k, cu_seqlens, per_frame, thetas, chosen)
    return q, k, v


def _parts(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(qkv, Tensor):
        raise ValueError(f"qkv is a {type(qkv).__name__}; pass a torch tensor")
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}; pass [T, 3, H, D]")
    q, k, v = qkv.unbind(1)
    return q, k, v


def _axes(tokens_per_frame: int | None, theta: float | tuple[float, float]) -> tuple[int, list[float]]:
    """Tokens of a frame, 1 where there is one axis, and the base of each axis."""
    axes = 1 if tokens_per_frame is None else 2
    if axes == 1 and isinstance(theta, tuple):
        raise ValueError(f"theta is {theta}, a pair; one axis takes one base (or pass tokens_per_frame)")
    thetas = [*theta] if isinstance(theta, tuple) else [theta] * axes
    if len(thetas) != axes:
        raise ValueError(f"theta is {theta}; pass a positive base, or one for each of the {axes} axes")
    return 1 if tokens_per_frame is None else tokens_per_frame, thetas


def _validate(q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float]) -> Tensor:
    """The offsets in int32; raises what the ops promise to raise."""
    axes = len(thetas)
    if q.dim() != 3 or k.dim() != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise ValueError(f"q, k have shapes {tuple(q.shape)}, {tuple(k.shape)}; pass [T, H, D] and [T, Hk, D]")
    if q.dtype != k.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k are {q.dtype}, {k.dtype}; pass one floating-point dtype")
    if q.device != k.device:
        raise ValueError(f"q, k are on {q.device}, {k.device}; use one device")
    if axes not in (1, 2) or not all(0 < theta < math.inf for theta in thetas):  # NaN is neither
        raise ValueError(f"theta is {thetas}; pass a positive, finite base for one axis or for each of two")
    if q.shape[2] % (2 * axes):
        raise ValueError(
            f"the head dimension {q.shape[2]} is not a multiple of {2 * axes}: {axes} axes of channel pairs"
        )
    if tokens_per_frame < 1:
        raise ValueError(f"tokens_per_frame is {tokens_per_frame}; it must be at least 1")
    return checked_offsets("cu_seqlens", cu_seqlens, q.shape[0], q.device, torch.int32)


def _check_inplace(q: Tensor, k: Tensor) -> None:
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise ValueError(
            "inplace=True, but q or k requires a gradient; leave it out, call under torch.no_grad(), or pass the "
            "packed projection to apply_rotary_qkv"
        )
    _check_overlap(q, k)


def _check_overlap(q: Tensor, k: Tensor) -> None:
    """Raise where a value would be turned twice, or turned and then read."""
    for name, x in (("q", q), ("k", k)):
        if overlaps_itself(x):
            raise ValueError(f"inplace=True, but {name} of strides {x.stride()} overlaps itself; pass a copy of it")
    # A compiler has no addresses: the registered op looks at them when it runs.
    if q is k or (not torch.compiler.is_compiling() and share_memory(q, k)):
        raise ValueError("inplace=True, but q and k share memory, which would be turned twice; leave inplace out")
