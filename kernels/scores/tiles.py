"""Tile shapes of score matrices `a @ b.T`, and the device functions on tiles that the losses' kernels share.

A program computes one tile over the whole depth in float32 and ends in the epilogue of its loss. Programs walk the
matrix in groups of row tiles, so that concurrent programs read few rows of `a` and `b` and find them in L2. float32 is
computed as three TF32 products: as accurate as float32 FMA, and twice as fast.

Launches disable fused multiply-add except for explicit `tl.fma`: the largest logit minus itself must be 0, and would
not be if the product were rounded on one side only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class TileShape(NamedTuple):
    """Shape of a program.

    Attributes:
        rows, columns: of the tile.
        depth: channels per step.
        warps: per program.
        stages: of the software pipeline of loads.
        pieces: column slices that the epilogue processes one by one, a power of two.
        registers: limit per thread for ptxas. Without it, some Triton versions exceed by two registers what lets two
            programs share a multiprocessor.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    pieces: int
    registers: int | None = None


# Two programs of 8 warps share a multiprocessor, so that one's exponentials overlap with the products of the other.
# That takes at most 128 registers per thread and half of the shared memory: 113 KiB on sm_90, 50 KiB if sm_86 is to
# be served too. In 16 bits a tile of 128 x 128 does 64 operations per byte read from L2: 450 TFLOP/s at 7 TB/s, if
# all else overlaps. A tile of 128 x 256 does 85, 600 TFLOP/s, but fills a multiprocessor alone: the start of its
# pipeline, barriers, and the instructions after its product (5,200 issue cycles for contrastive statistics, 3,300 for
# their gradients, beside 12,300 cycles of the tensor cores) do not overlap. That leaves 420 to 480 TFLOP/s.
_LARGE = {2: TileShape(128, 128, 64, 8, 3, 8, registers=128), 4: TileShape(128, 128, 32, 8, 2, 8)}
_WIDE = {2: TileShape(128, 256, 64, 8, 3, 16), 4: _LARGE[4]}  # TF32x3 would spill
_SMALL = {2: TileShape(128, 128, 32, 8, 4, 8), 4: TileShape(128, 64, 32, 8, 2, 4)}

# Two tiles in the registers of one large tile.
_LARGE_PAIR = {2: TileShape(128, 64, 64, 8, 4, 4), 4: TileShape(128, 64, 32, 8, 2, 4)}
_SMALL_PAIR = {2: TileShape(128, 64, 32, 8, 4, 4), 4: TileShape(64, 64, 32, 8, 2, 4)}


def tile_shape(dtype: torch.dtype, capability: tuple[int, int], *, wide: bool = False) -> TileShape:
    """Shape of a score tile. Independent of the batch: no size is tuned or compiled for."""
    tables = (_WIDE if wide else _LARGE) if capability[0] in (9, 10) else _SMALL
    return tables[dtype.itemsize]


def pair_tile_shape(dtype: torch.dtype, capability: tuple[int, int]) -> TileShape:
    """Shape for kernels that hold the same tile of two score matrices."""
    tables = _LARGE_PAIR if capability[0] in (9, 10) else _SMALL_PAIR
    return tables[dtype.itemsize]


def tile_constants(tile: TileShape, dtype: torch.dtype, channels: int) -> dict[str, object]:
    """Keyword arguments of every kernel that computes score tiles."""
    return {
        "DEPTH": channels,
        "BLOCK_R": tile.rows,
        "BLOCK_C": tile.columns,
        "BLOCK_D": tile.depth,
        "PIECES": tile.pieces,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": False,
    }


@triton.jit
def tile_of_program(tiles_r: tl.tensor, tiles_c: tl.tensor, GROUP: tl.constexpr = 16) -> tuple[tl.tensor, tl.tensor]:
    """Row and column tile of this program: down GROUP row tiles, then to the next column tile."""
    program = tl.program_id(0)
    group = program // (GROUP * tiles_c)
    first = group * GROUP
    height = tl.minimum(tiles_r - first, GROUP)
    within = program - group * GROUP * tiles_c
    return first + within % height, within // height


@triton.jit
def score_tile(
    a: tl.tensor,
    b: tl.tensor,
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """The scores `[BLOCK_R, BLOCK_C]` from `row`, `column` on; 0 beyond `rows` and `columns`."""
    r = tl.arange(0, BLOCK_R)[:, None]
    c = tl.arange(0, BLOCK_C)[None, :]
    depth = tl.arange(0, BLOCK_D)
    inside_r = r < rows - row
    inside_c = c < columns - column
    a += tl.cast(row, tl.int64) * stride_a + r * stride_a + depth[None, :]  # [BLOCK_R, BLOCK_D]
    b += tl.cast(column, tl.int64) * stride_b + c * stride_b + depth[:, None]  # [BLOCK_D, BLOCK_C]
    tile = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for begin in range(0, DEPTH, BLOCK_D):
        if DEPTH % BLOCK_D == 0:
            a_tile = tl.load(a, mask=inside_r, other=0.0)
            b_tile = tl.load(b, mask=inside_c, other=0.0)
        else:
            present = depth < DEPTH - begin
            a_tile = tl.load(a, mask=inside_r & present[None, :], other=0.0)
            b_tile = tl.load(b, mask=inside_c & present[:, None], other=0.0)
        tile = tl.dot(a_tile, b_tile, tile, input_precision=PRECISION)
        a += BLOCK_D
        b += BLOCK_D
    return tile


@triton.jit
def stored_or_score_tile(
    stored: tl.tensor,
    stride_s: tl.tensor,
    tile_r: tl.tensor,
    tile_c: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    STORED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """The tile: loaded if STORED, from a block padded to whole tiles with finite values, else computed."""
    if STORED:
        r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
        c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
        tile = tl.load(stored + r[:, None] * stride_s + c[None, :])
    else:
        tile = score_tile(
            a, b, stride_a, stride_b, row, column, rows, columns, DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION
        )
    return tile


@triton.jit
def _halves(tile: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, [rows, 2, columns // 2]), [0, 2, 1]))


@triton.jit
def pieces(tile: tl.tensor, PIECES: tl.constexpr) -> tuple:
    """The tile in PIECES column slices, left to right: an epilogue that takes one at a time needs few registers."""
    if PIECES == 1:
        parts = (tile,)
    else:
        left, right = _halves(tile)
        parts = pieces(left, PIECES // 2) + pieces(right, PIECES // 2)
    return parts


@triton.jit
def finite_or_zero(largest: tl.tensor) -> tl.tensor:
    """A maximum that can be subtracted from its set: for an empty set, -inf minus -inf would be NaN."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def exp(x: tl.tensor) -> tl.tensor:
    """By exp2, which the hardware has. Exact for 0."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def logits_of(similarity: tl.tensor, scale: tl.tensor, shift: tl.tensor, inside_r: tl.tensor) -> tl.tensor:
    """`scale * similarity + shift`, -inf in rows outside the matrix; `shift` is -inf in columns outside."""
    logits = tl.fma(similarity, scale, tl.broadcast_to(shift[None, :], similarity.shape))
    return tl.where(inside_r[:, None], logits, float("-inf"))
