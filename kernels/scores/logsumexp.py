"""Log-sum-exps over the rows or the columns of `scale * a @ b.T - shift`: kernel and launcher.

The vocabulary loss needs those of rows; a Sinkhorn round needs those of rows with the potentials as shift, then those
of columns with the rows' log-sum-exps as shift. The first round can store the scores for the later ones.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch, variants
from slap_fast.kernels.scores import partial_sums
from slap_fast.kernels.scores.blocks import block_shape, blocks
from slap_fast.kernels.scores.partial_sums import fold, nothing, running, store_rows
from slap_fast.kernels.scores.tiles import (
    TileShape,
    exp,
    finite_or_zero,
    pieces,
    score_tile,
    tile_constants,
    tile_of_program,
    tile_shape,
)


@triton.jit
def within_columns(
    tile: tl.tensor, column: tl.tensor, columns: tl.tensor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
) -> tl.tensor:
    """The tile from `column` on, with -1e30, below any score and finite, beyond `columns`."""
    if column + BLOCK_C > columns:
        c = tl.broadcast_to((column + tl.arange(0, BLOCK_C))[None, :], [BLOCK_R, BLOCK_C])
        tile = tl.where(c < columns, tile, -1e30)
    return tile


@triton.jit
def sums_of_rows(
    parts: tl.tuple, scale: tl.tensor, BLOCK_R: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Maximum of each row of the scores in `parts`, and sum of `2 ** (scale * (score - maximum))`.

    The difference comes first: it is exact near the maximum.
    """
    most = parts[0]
    for piece in tl.static_range(1, PIECES):
        most = tl.maximum(most, parts[piece])
    largest = tl.max(most, 1)
    total = tl.zeros([BLOCK_R, WIDTH], tl.float32)
    for piece in tl.static_range(PIECES):
        total += tl.exp2((parts[piece] - largest[:, None]) * scale)
    return largest, tl.sum(total, 1)


@triton.jit(do_not_specialize=["begin_r", "begin_c", "rows", "columns", "tiles_r", "tiles_c", "height", "width"])
def logsumexp_kernel(
    a: tl.tensor,
    b: tl.tensor,
    scale: tl.tensor,  # one element, if HAS_SCALE
    row_shift: tl.tensor,  # [R], subtracted if HAS_SHIFT and not OF_ROWS
    column_shift: tl.tensor,  # [C], subtracted if HAS_SHIFT and OF_ROWS
    stored: tl.tensor,  # [R, C] of a @ b.T in whole tiles, if STORE
    parts: tl.tensor,  # [2, tiles_c, height], or [2, tiles_r, width]
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    pitch: tl.tensor,  # of stored
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
    HAS_SHIFT: tl.constexpr,
    STORE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c)
    row = begin_r + tile_r * BLOCK_R
    # Blocks begin at whole tiles. Without this hint the compiler stores 2 bytes at a time.
    column = tl.multiple_of(begin_c + tile_c * BLOCK_C, BLOCK_C)
    tile = score_tile(a, b, stride_a, stride_b, row, column, rows, columns, DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION)
    r = row + tl.arange(0, BLOCK_R)
    multiplier = 1.0
    if HAS_SCALE:
        multiplier = tl.load(scale)
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    if OF_ROWS:
        if HAS_SHIFT:
            tiles = pieces(tile, PIECES)
            largest, total, _ = nothing(BLOCK_R)
            for piece in tl.static_range(PIECES):
                c = column + piece * WIDTH + tl.arange(0, WIDTH)
                shift = -tl.load(column_shift + c, mask=c < columns, other=float("inf"))
                logits = tl.fma(tiles[piece], multiplier, tl.broadcast_to(shift[None, :], tiles[piece].shape))
                new_largest = tl.maximum(largest, tl.max(logits, 1))
                reference = finite_or_zero(new_largest)
                total = total * exp(largest - reference) + tl.sum(exp(logits - reference[:, None]), 1)
                largest = new_largest
        else:
            tiles = pieces(within_columns(tile, column, columns, BLOCK_R, BLOCK_C), PIECES)
            largest, total = sums_of_rows(tiles, multiplier * 1.4426950408889634, BLOCK_R, WIDTH, PIECES)
            largest *= multiplier
        r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
        store_rows(parts + tile_c * height, r, tiles_c * height, height, (largest, total, total), False)
    else:
        if row + BLOCK_R > rows:
            tile = tl.where(tl.broadcast_to((r < rows)[:, None], [BLOCK_R, BLOCK_C]), tile, float("-inf"))
        tiles = pieces(tile, PIECES)
        unit = multiplier
        if HAS_SHIFT:
            unit = 1.0
            shift_r = tl.load(row_shift + r, mask=r < rows, other=0.0)[:, None]
        base = unit * 1.4426950408889634
        if STORE:
            stored += tl.cast(row, tl.int64) * pitch + column + tl.arange(0, BLOCK_R)[:, None] * pitch
        parts += tile_r * width
        for piece in tl.static_range(PIECES):
            within = piece * WIDTH + tl.arange(0, WIDTH)
            similarity = tiles[piece]
            if STORE:
                # Sum what later passes will read: a potential of other scores would add an error.
                rounded = similarity.to(stored.dtype.element_ty)
                tl.store(stored + within[None, :], rounded)
                similarity = rounded.to(tl.float32)
            if HAS_SHIFT:
                similarity = tl.fma(similarity, multiplier, tl.broadcast_to(-shift_r, similarity.shape))
            largest = tl.max(similarity, 0)
            column_sum = tl.sum(tl.exp2((similarity - largest[None, :]) * base), 0)
            c = tile_c * BLOCK_C + within
            tl.store(parts + c, largest * unit, mask=c < width)
            tl.store(parts + tiles_r * width + c, column_sum, mask=c < width)


def tile_of(features: Tensor, variant: str) -> TileShape:
    """The tile shape of the chosen variant; float32 stays at 128 x 128, beyond which its three products spill."""
    wide = variants.chosen(variant) == "128x256" and features.dtype != torch.float32
    return tile_shape(features.dtype, launch.capability(features.device), wide=wide)


def of_rows(
    a: Tensor, b: Tensor, tile: TileShape, *, scale: Tensor | None = None, column_shift: Tensor | None = None
) -> Tensor:
    """`[2, R]`: maximum of each row of `scale * a @ b.T - column_shift`, and sum of exponentials relative to it."""
    sums = running(1, 2, a.shape[0], a.device)
    _sweep(a, b, tile, sums, True, scale, None, column_shift)
    return sums[0]


def of_columns(
    a: Tensor,
    b: Tensor,
    tile: TileShape,
    *,
    scale: Tensor,
    row_shift: Tensor | None = None,
    stored: Tensor | None = None,
) -> Tensor:
    """`[2, C]`: maximum of each column of `scale * a @ b.T - row_shift`, and sum of exponentials relative to it.

    Writes `a @ b.T` to `stored`, if given, whose rows and columns are multiples of `blocks.TILE`.
    """
    sums = running(1, 2, b.shape[0], a.device)
    _sweep(a, b, tile, sums, False, scale, row_shift, None, stored)
    return sums[0]


def _sweep(
    a: Tensor,
    b: Tensor,
    tile: TileShape,
    sums: Tensor,
    of_rows: bool,
    scale: Tensor | None,
    row_shift: Tensor | None,
    column_shift: Tensor | None,
    stored: Tensor | None = None,
) -> None:
    rows, columns = a.shape[0], b.shape[0]
    constants = tile_constants(tile, a.dtype, a.shape[1])
    block_r, block_c = block_shape(rows, columns, partial_sums.AREA)
    most_r, most_c = min(rows, block_r), min(columns, block_c)
    size = triton.cdiv(most_c, tile.columns) * most_r if of_rows else triton.cdiv(most_r, tile.rows) * most_c
    parts = torch.empty(2 * size, dtype=torch.float32, device=a.device)
    # A kernel needs some pointer for a tensor that it does not use.
    given = [sums if x is None else x for x in (scale, row_shift, column_shift, stored)]
    with launch.on_device_of(a):
        for begin_r, end_r in blocks(rows, block_r):
            for begin_c, end_c in blocks(columns, block_c):
                height, width = end_r - begin_r, end_c - begin_c
                tiles_r, tiles_c = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
                logsumexp_kernel[(tiles_r * tiles_c,)](
                    a, b, *given, parts, a.stride(0), b.stride(0), 0 if stored is None else stored.stride(0),
                    begin_r, begin_c, end_r, end_c, tiles_r, tiles_c, height, width,
                    OF_ROWS=of_rows, HAS_SCALE=scale is not None,
                    HAS_SHIFT=(column_shift if of_rows else row_shift) is not None, STORE=stored is not None,
                    maxnreg=tile.registers, **constants,
                )  # fmt: skip
                if of_rows:
                    fold(parts, sums, tiles_c, begin_r, height)
                else:
                    fold(parts, sums, tiles_r, begin_c, width)
