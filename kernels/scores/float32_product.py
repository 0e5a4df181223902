"""Matrix product of float32 as three TF32 products: as accurate as float32 FMA, and about twice as fast.

cuBLAS has single TF32, too inaccurate, and FMA, at most 67 TFLOP/s on an H100 SXM; TF32x3 reaches at most 165. Tensor
cores truncate their sums, so each step along the depth is added outside of them.

One program sums a tile over the whole depth or, if there are few tiles, over a share of it. Shares are added in a fixed
order: the same bits from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels.scores.tiles import tile_of_program


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# A narrower tile would let two programs share a multiprocessor, but reads 1.5 times as much from L2, the bottleneck.
_TILE = _Tile(128, 128, 32, 8, 3)
# Split the depth up to this many programs, of at least this depth each. A multiprocessor runs one program at a time.
_PROGRAMS = 256
_MIN_DEPTH = 1024


@triton.jit(do_not_specialize=["rows", "depth", "steps", "tiles_r", "tiles_c"])
def product_kernel(
    a: tl.tensor,  # [R in whole tiles, K]
    b: tl.tensor,  # [K, COLUMNS]
    out: tl.tensor,  # [R, COLUMNS], or one per share
    stride_ar: tl.tensor,
    stride_ak: tl.tensor,
    stride_b: tl.tensor,
    stride_o: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    steps: tl.tensor,  # of BLOCK_K, per share
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    ADD: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c, 8)
    r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    inside_c = (c < COLUMNS)[None, :] if COLUMNS % BLOCK_C else tl.full([1, BLOCK_C], 1, tl.int1)
    begin = tl.program_id(1) * steps * BLOCK_K
    depth = tl.minimum(depth - begin, steps * BLOCK_K)
    a += r.to(tl.int64)[:, None] * stride_ar + (begin + k).to(tl.int64)[None, :] * stride_ak  # [BLOCK_R, BLOCK_K]
    b += (begin + k).to(tl.int64)[:, None] * stride_b + c[None, :]  # [BLOCK_K, BLOCK_C]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    whole = depth // BLOCK_K
    for _ in range(whole):
        total = tl.dot(tl.load(a), tl.load(b, mask=inside_c, other=0.0), total, input_precision="tf32x3")
        a += BLOCK_K * stride_ak
        b += BLOCK_K * stride_b
    if whole * BLOCK_K < depth:
        present = k < depth - whole * BLOCK_K
        a_tile = tl.load(a, mask=present[None, :], other=0.0)
        b_tile = tl.load(b, mask=inside_c & present[:, None], other=0.0)
        total = tl.dot(a_tile, b_tile, total, input_precision="tf32x3")
    out += tl.program_id(1).to(tl.int64) * rows * COLUMNS
    target = out + r.to(tl.int64)[:, None] * stride_o + c[None, :]
    inside = inside_c & (r < rows)[:, None]
    if ADD:
        total += tl.load(target, mask=inside, other=0.0)
    tl.store(target, total, mask=inside)


def store(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """`out = a @ b`, or `out += a @ b` if `add`.

    Args:
        out: `[R, C]` float32, last stride 1.
        a: `[R, K]` float32, any strides: the corner of a tensor whose number of rows is a multiple of 128.
        b: `[K, C]` float32, last stride 1. The kernel is compiled for its columns.
    """
    (rows, columns), depth = out.shape, a.shape[1]
    tiles_r, tiles_c = triton.cdiv(rows, _TILE.rows), triton.cdiv(columns, _TILE.columns)
    shares = max(1, min(_PROGRAMS // (tiles_r * tiles_c), depth // _MIN_DEPTH))
    steps = triton.cdiv(triton.cdiv(depth, _TILE.depth), shares)
    parts = out[None] if shares == 1 else out.new_empty(shares, rows, columns)
    product_kernel[(tiles_r * tiles_c, shares)](
        a, b, parts, *a.stride(), b.stride(0), parts.stride(1), rows, depth, steps, tiles_r, tiles_c,
        ADD=add and shares == 1, COLUMNS=columns, BLOCK_R=_TILE.rows, BLOCK_C=_TILE.columns, BLOCK_K=_TILE.depth,
        num_warps=_TILE.warps, num_stages=_TILE.stages,
    )  # fmt: skip
    if shares > 1:
        if add:
            out += parts.sum(0)
        else:
            torch.sum(parts, 0, out=out)
