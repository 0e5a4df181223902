"""Rotary position embedding of packed queries and keys, over one axis (text) or two (time and frequency of patches).

    q, k = apply_rotary(q, k, cu_seqlens)                            # [T, H, D] and [T, Hk, D]
    q, k, v = apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=4)  # [T, 3, H, D], the output of one projection

Positions follow from `cu_seqlens`; no table over the whole length is made. Channels pair as in GPT-NeoX: the first half
of the channels of an axis with the second half (RoFormer, arXiv 2104.09864, equation 15; axial as in RoPE-ViT,
arXiv 2403.13298, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.rotary import backend_native, backend_torch, backend_triton
from slap_fast.ops.rotary.call import (
    Angles,
    Backend,
    build_angles,
    check,
    check_inplace,
    check_pack,
    check_unpack,
    require_inplace,
    select,
    split,
    validate,
)

# In order of preference.
BACKENDS: dict[str, Backend] = {"native": backend_native, "triton": backend_triton, "torch": backend_torch}
dispatch.register(
    "apply_rotary",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::apply_rotary", check=check, rule=autocast.widest)
def _apply_rotary(q: Tensor, k: Tensor, angles: Angles, inverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    out_q, out_k = q.new_empty(q.shape), k.new_empty(k.shape)
    BACKENDS[backend].rotate(q, k, angles, inverse, out_q, out_k)
    return out_q, out_k


@_apply_rotary.register_fake
def _(q: Tensor, k: Tensor, angles: Angles, inverse: bool, backend: str) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@custom_op("slap_fast::apply_rotary_", mutates_args=("q", "k"), check=check_inplace)
def _apply_rotary_(q: Tensor, k: Tensor, angles: Angles, backend: str) -> None:
    BACKENDS[backend].rotate(q, k, angles, False, q, k)


@custom_op("slap_fast::rotary_unpack", check=check_unpack)
def _unpack(qkv: Tensor, angles: Angles, inverse: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty(part.shape) for part in qkv.unbind(1))
    BACKENDS[backend].rotate(qkv[:, 0], qkv[:, 1], angles, inverse, q, k)
    return q, k, v.copy_(qkv[:, 2])


@_unpack.register_fake
def _(qkv: Tensor, angles: Angles, inverse: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty(part.shape) for part in qkv.unbind(1))
    return q, k, v


@custom_op("slap_fast::rotary_pack", check=check_pack, rule=autocast.widest)
def _pack(q: Tensor, k: Tensor, v: Tensor, angles: Angles, inverse: bool, backend: str) -> Tensor:
    qkv = q.new_empty(q.shape[0], 3, *q.shape[1:])
    BACKENDS[backend].rotate(q, k, angles, inverse, qkv[:, 0], qkv[:, 1])
    qkv[:, 2] = v
    return qkv


@_pack.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, angles: Angles, inverse: bool, backend: str) -> Tensor:
    return q.new_empty(q.shape[0], 3, *q.shape[1:])


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: object) -> None:
    angles, ctx.inverse, ctx.backend = inputs[-3:]  # type: ignore[attr-defined]
    ctx.save_for_backward(angles.cu_seqlens)
    ctx.axes = angles[1:]  # type: ignore[attr-defined]


def _transposed(ctx: torch.autograd.function.FunctionCtx) -> tuple[Angles, bool, str]:
    """The transpose of a rotation is its inverse."""
    return Angles(*ctx.saved_tensors, *ctx.axes), not ctx.inverse, ctx.backend  # type: ignore[attr-defined]


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
        tokens_per_frame: None for one axis, the position in the sequence. Otherwise two axes: the first half of the
            channels rotates with the frame, `position // tokens_per_frame`, the second half with the row within it,
            `position % tokens_per_frame`.
        theta: base of the geometric series of wavelengths; with two axes a pair `(time, frequency)`, or one for both.
        inplace: overwrite `q` and `k`, which must not share memory, and return them. Only where no gradient is
            recorded: for views that were changed in place, PyTorch copies the gradient of the whole base tensor once
            for `q` and once for `k`, which costs more than it saves. For training use `apply_rotary_qkv`.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        The rotated queries and keys: contiguous tensors of the same shapes and dtype, or `q` and `k` with `inplace`.
        Arithmetic is float32 (float64 for float64), rounded once.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a head dimension that does not split into pairs, offsets
            on the CPU that do not rise from 0 to T, or `inplace` where a gradient is recorded or memory overlaps.

    Offsets on a GPU are not read back, hence not checked. Whatever they are, the Triton kernel rotates every token by
    its distance from one of them; tokens after the last offset continue the last sequence.
    """
    if not inplace:
        q, k = autocast.cast(autocast.widest, q, k)
    checked = validate(q, k, build_angles(cu_seqlens, tokens_per_frame, theta))
    chosen = select(q, backend)
    if not inplace:
        return _apply_rotary(q, k, checked, False, chosen)
    require_inplace(q, k)
    _apply_rotary_(q, k, checked, chosen)
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
    """Split the output of one projection into queries, keys and values, with queries and keys rotated.

    One pass forward, and one backward that writes the whole gradient of `qkv`. `apply_rotary` on views of `qkv` is as
    fast, but there the values keep all of `qkv` alive until the backward pass, in addition to the rotated tensors: 5/3
    of the memory. Here the values are copied.

    Args:
        qkv: `[T, 3, H, D]` floating point, any strides.
        cu_seqlens: as for `apply_rotary`.
        tokens_per_frame: as for `apply_rotary`.
        theta: as for `apply_rotary`.
        inplace: rotate within `qkv` and return views of it. Only where no gradient is recorded.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        Rotated queries, rotated keys and values, each `[T, H, D]`: contiguous, or views of `qkv` with `inplace`.

    Raises:
        ValueError: as for `apply_rotary`.
    """
    q, k, v = split(qkv)
    checked = validate(q, k, build_angles(cu_seqlens, tokens_per_frame, theta))
    chosen = select(q, backend)
    if not inplace:
        return _unpack(qkv, checked, False, chosen)
    require_inplace(q, k)
    _apply_rotary_(q, k, checked, chosen)
    return q, k, v
