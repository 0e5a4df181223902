"""Rotary position embedding of packed queries and keys: one axis (text) or two (time and frequency of audio patches).

Positions follow from `cu_seqlens`; no table of the whole length is ever made. Channels pair as in GPT-NeoX: the first
half of an axis' channels with its second half (RoFormer, arXiv 2104.09864, equation 15; axial as in RoPE-ViT,
arXiv 2403.13298, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import dispatch


@torch.library.custom_op("slap_fast::apply_rotary", mutates_args=())
def _apply_rotary(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    cos, sin = _rotation(cu_seqlens, q.shape[0], q.shape[2], tokens_per_frame, thetas, q.dtype)
    if inverse:
        sin = -sin
    return _rotate(q, cos, sin, len(thetas)), _rotate(k, cos, sin, len(thetas))


@_apply_rotary.register_fake
def _(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int, thetas: list[float], inverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


dispatch.register("apply_rotary", [dispatch.Backend(name="torch")])


def _rotation(
    cu_seqlens: Tensor, total: int, head_dim: int, tokens_per_frame: int, thetas: list[float], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of `[T, 1, axes, head_dim / axes / 2]` angles, in float32 (float64 for float64)."""
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    offsets = cu_seqlens.long()
    clip = torch.repeat_interleave(offsets.diff(), output_size=total)
    position = torch.arange(total, device=cu_seqlens.device) - offsets[clip]
    positions = [position] if len(thetas) == 1 else [position // tokens_per_frame, position % tokens_per_frame]
    channels = head_dim // len(thetas)
    exponent = torch.arange(0, channels, 2, device=cu_seqlens.device, dtype=torch.float64) / channels
    angles = [
        axis[:, None].to(precise) * (theta**-exponent).to(precise)
        for axis, theta in zip(positions, thetas, strict=True)
    ]
    angle = torch.stack(angles, dim=1).unsqueeze(1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, axes: int) -> Tensor:
    pairs = x.unflatten(2, (axes, 2, -1))  # [T, H, axes, 2, channels / 2]
    first, second = (half.to(cos.dtype) for half in pairs.unbind(3))
    rotated = x.new_empty(x.shape)
    halves = rotated.unflatten(2, (axes, 2, -1))
    halves[:, :, :, 0] = first * cos - second * sin
    halves[:, :, :, 1] = second * cos + first * sin
    return rotated


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, _, cu_seqlens, *ctx.settings, ctx.inverse, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(cu_seqlens)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    # A rotation's transpose is its inverse.
    (cu_seqlens,) = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = _apply_rotary(grad_q, grad_k, cu_seqlens, *ctx.settings, not ctx.inverse, ctx.backend)  # type: ignore[attr-defined]
    return *grads, *[None] * 5


_apply_rotary.register_autograd(_backward, setup_context=_setup_context)


def apply_rotary(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    *,
    tokens_per_frame: int | None = None,
    theta: float | tuple[float, float] = 10_000.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by the position of each token in its own sequence.

    Args:
        q: `[T, H, D]` floating point, any strides.
        k: `[T, Hk, D]`, dtype and device of `q`.
        cu_seqlens: `[N + 1]` int32 offsets from 0 to T, on the device of `q`.
        tokens_per_frame: None for one axis, the position in the sequence. Else two axes: the first half of the
            channels turns with the frame, `position // tokens_per_frame`, the second half with the row in it,
            `position % tokens_per_frame`.
        theta: base of the geometric series of wavelengths; with two axes a pair `(time, frequency)`, or one for both.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        The rotated queries and keys, new tensors of the same shapes and dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a head dimension that does not split into pairs.
    """
    axes = 1 if tokens_per_frame is None else 2
    if q.dim() != 3 or k.dim() != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise ValueError(f"q, k have shapes {tuple(q.shape)}, {tuple(k.shape)}; pass [T, H, D] and [T, Hk, D]")
    if q.dtype != k.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k are {q.dtype}, {k.dtype}; pass one floating-point dtype")
    if not q.device == k.device == cu_seqlens.device:
        raise ValueError(f"q, k, cu_seqlens are on {q.device}, {k.device}, {cu_seqlens.device}; use one device")
    if q.shape[2] % (2 * axes):
        raise ValueError(
            f"the head dimension {q.shape[2]} is not a multiple of {2 * axes}: {axes} axes of channel pairs"
        )
    if tokens_per_frame is not None and tokens_per_frame < 1:
        raise ValueError(f"tokens_per_frame is {tokens_per_frame}; it must be at least 1")
    if axes == 1 and isinstance(theta, tuple):
        raise ValueError(f"theta is {theta}, a pair; one axis takes one base (or pass tokens_per_frame)")
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; pass [N + 1] int32")
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling() and int(cu_seqlens[-1]) != q.shape[0]:
        raise ValueError(f"cu_seqlens ends at {int(cu_seqlens[-1])}; it must end at the {q.shape[0]} tokens")
    thetas = [*theta] if isinstance(theta, tuple) else [theta] * axes
    chosen = dispatch.select("apply_rotary", backend, device=q.device, dtype=q.dtype, head_dim=q.shape[2])
    return _apply_rotary(q, k, cu_seqlens, tokens_per_frame or 1, thetas, False, chosen)
