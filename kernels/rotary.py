"""Triton kernel for rotary position embedding: `q` and `k` in one launch, in place or not, positions from `cu_seqlens`.

Memory-bound: 4 bytes per channel of `q` and `k` in 16-bit types. For 16 clips (3,036 tokens, 12 x 64) that is 19 MB, 4
us at the 4.8 TB/s of an H200, about the cost of one launch. Hence each program finds the positions of its tokens
itself, and rotates several heads by angles that it computes once.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch

# Pairs of channels of a program: two vectors of 16 bytes per thread and tensor in 16-bit types.
_PAIRS = 2048
_HEADS = 4


@triton.jit
def _cos_sin(phase: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """cos and sin of an angle in int64 units of 2**-64 turns: whole turns overflow, so late positions stay exact.

    The range reduction of the math library would put a table in local memory. The polynomials interpolate at Chebyshev
    nodes over an eighth of a turn in both directions, with an error of 1e-7.
    """
    turn = (phase >> 32).to(tl.int32)
    quarter = (turn + (1 << 29)) >> 30
    x = (turn - (quarter << 30)).to(tl.float32) * (1.0 / (1 << 32))
    z = x * x
    sin = x * (6.2831854820 + z * (-41.341701508 + z * (81.605201721 + z * (-76.697868347 + z * 41.472892761))))
    cos = 1.0 + z * (-19.739208221 + z * (64.939315796 + z * (-85.442848206 + z * 59.220287323)))
    swap = quarter & 1 != 0
    cos, sin = tl.where(swap, sin, cos), tl.where(swap, cos, sin)
    return tl.where((quarter + 1) & 2 != 0, -cos, cos), tl.where(quarter & 2 != 0, -sin, sin)


@triton.jit
def _rotate_heads(
    source: tl.tensor,
    out: tl.tensor,
    stride_st: tl.tensor,
    stride_sh: tl.tensor,
    stride_ot: tl.tensor,
    stride_oh: tl.tensor,
    tokens: tl.tensor,
    total: tl.tensor,
    first_head: tl.tensor,
    heads: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    pairs = tl.arange(0, BLOCK_P)
    first = (pairs // HALF * (2 * HALF) + pairs % HALF)[None, None, :]
    token = tokens.to(tl.int64)[:, None, None]
    head = tl.cast(first_head + tl.arange(0, BLOCK_H), tl.int64)[None, :, None]
    mask = (token < total) & (head < heads) & (pairs < HEAD_DIM // 2)[None, None, :]
    source += token * stride_st + head * stride_sh + first  # [BLOCK_T, BLOCK_H, BLOCK_P]
    a = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    out += token * stride_ot + head * stride_oh + first
    tl.store(out, (a * cos - b * sin).to(out.dtype.element_ty), mask=mask)
    tl.store(out + HALF, (b * cos + a * sin).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["clips", "total"])
def rotary_kernel(
    q: tl.tensor,
    k: tl.tensor,
    out_q: tl.tensor,
    out_k: tl.tensor,
    cu_seqlens: tl.tensor,
    frequencies: tl.tensor,  # [HEAD_DIM / 2], int64 units of 2**-64 turns per position
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    stride_oqt: tl.tensor,
    stride_oqh: tl.tensor,
    stride_okt: tl.tensor,
    stride_okh: tl.tensor,
    clips: tl.tensor,
    total: tl.tensor,
    heads_q: tl.tensor,
    heads_k: tl.tensor,
    tokens_per_frame: tl.tensor,
    HEAD_DIM: tl.constexpr,
    AXES: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    HALF: tl.constexpr = HEAD_DIM // AXES // 2
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    clip = tl.zeros([BLOCK_T], tl.int32)  # the last clip that begins at or before each token
    span = clips
    while span > 1:
        half = span // 2
        begins = tl.load(cu_seqlens + clip + half)
        clip = tl.where(begins <= tokens, clip + half, clip)
        span -= half
    place = (tokens - tl.load(cu_seqlens + clip))[:, None]
    pairs = tl.arange(0, BLOCK_P)
    if AXES == 2:
        frame = place // tokens_per_frame
        place = tl.where((pairs < HALF)[None, :], frame, place - frame * tokens_per_frame)
    frequency = tl.load(frequencies + pairs, mask=pairs < HEAD_DIM // 2, other=0)
    cos, sin = _cos_sin(place.to(tl.int64) * frequency[None, :])  # [BLOCK_T, BLOCK_P]
    cos = cos[:, None, :]
    sin = sin[:, None, :]
    if INVERSE:
        sin = -sin

    group = tl.program_id(1)
    groups_q = tl.cdiv(heads_q, BLOCK_H)
    if group < groups_q:
        _rotate_heads(
            q, out_q, stride_qt, stride_qh, stride_oqt, stride_oqh, tokens, total, group * BLOCK_H, heads_q,
            cos, sin, HEAD_DIM, HALF, BLOCK_H, BLOCK_P,
        )  # fmt: skip
    else:
        _rotate_heads(
            k, out_k, stride_kt, stride_kh, stride_okt, stride_okh, tokens, total, (group - groups_q) * BLOCK_H,
            heads_k, cos, sin, HEAD_DIM, HALF, BLOCK_H, BLOCK_P,
        )  # fmt: skip


# Never evicted: a captured graph holds the address. The first call of a configuration uploads it, before any capture.
@functools.cache
def _frequencies(channels: int, thetas: tuple[float, ...], device: torch.device) -> Tensor:
    """`[pairs]`: units of 2**-64 turns per position, axis after axis, without whole turns."""
    exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    turns = torch.cat([theta**-exponent for theta in thetas]) / (2.0 * math.pi)
    # In [-0.5, 0.5): of both signs of half a turn, only -2**63 fits into int64.
    return ((turns - torch.floor(turns + 0.5)) * 2.0**64).to(torch.int64).to(device)


def rotate(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    tokens_per_frame: int,
    thetas: list[float],
    inverse: bool,
    out_q: Tensor,
    out_k: Tensor,
) -> None:
    """Write the rotated `[T, H, D]` and `[T, Hk, D]` to `out_q` and `out_k`, which may be `q` and `k` themselves.

    The last stride of each tensor is 1. There is one axis per theta. `inverse` rotates by the negative angles.
    """
    total, heads, head_dim = q.shape
    clips = cu_seqlens.shape[0] - 1
    if total == 0:
        return
    pairs = triton.next_power_of_2(head_dim // 2)
    tokens = max(1, _PAIRS // (pairs * _HEADS))
    groups = triton.cdiv(heads, _HEADS) + triton.cdiv(k.shape[1], _HEADS)
    frequencies = _frequencies(head_dim // len(thetas), tuple(thetas), q.device)
    with launch.on_device_of(q):
        rotary_kernel[(triton.cdiv(total, tokens), groups)](
            q, k, out_q, out_k, cu_seqlens, frequencies,
            *q.stride()[:2], *k.stride()[:2], *out_q.stride()[:2], *out_k.stride()[:2],
            clips, total, heads, k.shape[1], tokens_per_frame,
            HEAD_DIM=head_dim, AXES=len(thetas), INVERSE=inverse, BLOCK_T=tokens, BLOCK_H=_HEADS, BLOCK_P=pairs,
        )  # fmt: skip
