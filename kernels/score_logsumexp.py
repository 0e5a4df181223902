"""Log-sum-exps of `scale * a @ b.T` over its rows or its columns, with what is subtracted first: kernel and launcher.

Captions need the rows' over the vocabulary; a Sinkhorn round those of rows less the prototypes' potentials, then those
of columns less the rows'.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch, score_parts
from slap_fast.kernels.score_blocks import block_shape, blocks
from slap_fast.kernels.score_parts import fold, nothing, running, store_rows
from slap_fast.kernels.score_tiles import (
    exp,
    finite_or_zero,
    logits_of,
    pieces,
    score_tile_for,
    scores,
    tile_constants,
    tile_of_program,
)


@triton.jit(do_not_specialize=["begin_r", "begin_c", "rows", "columns", "tiles_r", "tiles_c", "height", "width"])
def logsumexp_kernel(
    a: tl.tensor,
    b: tl.tensor,
    scale: tl.tensor,  # one element, if HAS_SCALE
    row_shift: tl.tensor,  # [R], subtracted unless OF_ROWS
    column_shift: tl.tensor,  # [C], subtracted if HAS_COLUMN_SHIFT
    parts: tl.tensor,  # [2, tiles_c, height], or [2, tiles_r, width]
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    begin_r: tl.tensor,
    begin_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    OF_ROWS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_COLUMN_SHIFT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c)
    row = begin_r + tile_r * BLOCK_R
    column = begin_c + tile_c * BLOCK_C
    tile = scores(a, b, stride_a, stride_b, row, column, rows, columns, DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION)
    r = row + tl.arange(0, BLOCK_R)
    multiplier = 1.0
    if HAS_SCALE:
        multiplier = tl.load(scale)
    if not OF_ROWS:
        shift_r = tl.load(row_shift + r, mask=r < rows, other=0.0)[:, None]
        parts += tile_r * width
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    row_largest, row_sum, unused = nothing(BLOCK_R)
    tiles = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        c = column + piece * WIDTH + tl.arange(0, WIDTH)
        shift_c = tl.where(c < columns, 0.0, float("-inf"))
        if HAS_COLUMN_SHIFT:
            shift_c -= tl.load(column_shift + c, mask=c < columns, other=0.0)
        logits = logits_of(tiles[piece], multiplier, shift_c, r < rows)
        if OF_ROWS:
            largest = tl.maximum(row_largest, tl.max(logits, 1))
            reference = finite_or_zero(largest)
            row_sum = row_sum * exp(row_largest - reference) + tl.sum(exp(logits - reference[:, None]), 1)
            row_largest = largest
        else:
            logits -= shift_r
            largest = tl.max(logits, 0)
            column_sum = tl.sum(exp(logits - finite_or_zero(largest)[None, :]), 0)
            c = tile_c * BLOCK_C + piece * WIDTH + tl.arange(0, WIDTH)
            tl.store(parts + c, largest, mask=c < width)
            tl.store(parts + tiles_r * width + c, column_sum, mask=c < width)
    if OF_ROWS:
        r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
        store_rows(parts + tile_c * height, r, tiles_c * height, height, (row_largest, row_sum, unused), False)


def of_rows(a: Tensor, b: Tensor, *, scale: Tensor | None = None, column_shift: Tensor | None = None) -> Tensor:
    """`[2, R]`: largest of each row of `scale * a @ b.T - column_shift`, and sum of exponentials relative to it."""
    sums = running(1, 2, a.shape[0], a.device)
    _sweep(a, b, sums, scale, None, column_shift)
    return sums[0]


def of_columns(a: Tensor, b: Tensor, *, scale: Tensor, row_shift: Tensor) -> Tensor:
    """`[2, C]`: largest of each column of `scale * a @ b.T - row_shift`, and sum of exponentials relative to it."""
    sums = running(1, 2, b.shape[0], a.device)
    _sweep(a, b, sums, scale, row_shift, None)
    return sums[0]


def _sweep(
    a: Tensor,
    b: Tensor,
    sums: Tensor,
    scale: Tensor | None,
    row_shift: Tensor | None,
    column_shift: Tensor | None,
) -> None:
    rows, columns = a.shape[0], b.shape[0]
    of_rows = row_shift is None
    tile = score_tile_for(a.dtype, launch.capability(a.device))
    constants = tile_constants(tile, a.dtype, a.shape[1])
    block_r, block_c = block_shape(rows, columns, score_parts.AREA)
    most_r, most_c = min(rows, block_r), min(columns, block_c)
    size = triton.cdiv(most_c, tile.columns) * most_r if of_rows else triton.cdiv(most_r, tile.rows) * most_c
    parts = torch.empty(2 * size, dtype=torch.float32, device=a.device)
    # A kernel that has no use for a tensor is given another.
    given = [sums if x is None else x for x in (scale, row_shift, column_shift)]
    with launch.on_device_of(a):
        for begin_r, end_r in blocks(rows, block_r):
            for begin_c, end_c in blocks(columns, block_c):
                height, width = end_r - begin_r, end_c - begin_c
                tiles_r, tiles_c = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
                logsumexp_kernel[(tiles_r * tiles_c,)](
                    a, b, *given, parts, a.stride(0), b.stride(0),
                    begin_r, begin_c, end_r, end_c, tiles_r, tiles_c, height, width,
                    OF_ROWS=of_rows, HAS_SCALE=scale is not None, HAS_COLUMN_SHIFT=column_shift is not None,
                    **constants,
                )  # fmt: skip
                if of_rows:
                    fold(parts, sums, tiles_c, begin_r, height)
                else:
                    fold(parts, sums, tiles_r, begin_c, width)
