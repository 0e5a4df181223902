"""The float32 product of matrices in three TF32 products, as accurate as float32 itself, about three times as fast.

cuBLAS has TF32 alone, too coarse, or float32 by FMA, 67 TFLOP/s at most on an H100 SXM; TF32x3 reaches 165 at most. One
program sums a tile over the whole depth, so the result has the same bits from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels.score_tiles import tile_of_program


class _Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# A narrower one has two programs a multiprocessor, but reads half as much again, and L2 gives no more.
_TILE = _Tile(128, 128, 32, 8, 3)


@triton.jit(do_not_specialize=["rows", "depth", "tiles_r", "tiles_c"])
def product_kernel(
    a: tl.tensor,  # [R in whole tiles, K]
    b: tl.tensor,  # [K, COLUMNS]
    out: tl.tensor,  # [R, COLUMNS]
    stride_ar: tl.tensor,
    stride_ak: tl.tensor,
    stride_b: tl.tensor,
    stride_o: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
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
    a += r.to(tl.int64)[:, None] * stride_ar + k[None, :] * stride_ak  # [BLOCK_R, BLOCK_K]
    b += k[:, None] * stride_b + c[None, :]  # [BLOCK_K, BLOCK_C]
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
    target = out + r.to(tl.int64)[:, None] * stride_o + c[None, :]
    inside = inside_c & (r < rows)[:, None]
    if ADD:
        total += tl.load(target, mask=inside, other=0.0)
    tl.store(target, total, mask=inside)


def store(out: Tensor, a: Tensor, b: Tensor, *, add: bool = False) -> None:
    """`out = a @ b`, or `out += a @ b` if `add`.

    Args:
        out: `[R, C]` float32, last stride 1.
        a: `[R, K]` float32, any strides, the corner of a tensor whose rows go on to a multiple of 128.
        b: `[K, C]` float32, last stride 1. The kernel is compiled for its columns.
    """
    rows, columns = out.shape
    tiles_r, tiles_c = triton.cdiv(rows, _TILE.rows), triton.cdiv(columns, _TILE.columns)
    product_kernel[(tiles_r * tiles_c,)](
        a, b, out, *a.stride(), b.stride(0), out.stride(0), rows, a.shape[1], tiles_r, tiles_c,
        ADD=add, COLUMNS=columns, BLOCK_R=_TILE.rows, BLOCK_C=_TILE.columns, BLOCK_K=_TILE.depth,
        num_warps=_TILE.warps, num_stages=_TILE.stages,
    )  # fmt: skip
