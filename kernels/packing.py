"""Maps the programs of a grid to the clips of a packed batch on the device, without a launch or memory of its own.

Clip n owns the tiles from `cu_seqlens[n] // BLOCK + n` up to the first of clip n + 1. That is at least
`cdiv(length, BLOCK)` tiles, since floor(a + b) >= floor(a) + floor(b). In total there are `total // BLOCK + N`, which
needs no synchronization. At most one tile per clip is empty, about half a tile on average. The alternatives cost more:
a padded grid of `cdiv(max_seqlen, BLOCK) * N` programs is three quarters empty for clips of 4 to 750 tokens, and one
long clip among 5,000 short ones makes it millions; exact prefix sums need a launch and a buffer before every pass.

The tiles of a clip begin at its first token, so its bits do not depend on the rest of the batch.

Offsets on a GPU are not validated. The first is read as 0, offsets beyond the tensor as its end, and the tokens after
the last offset as one more clip, which sees nothing. Thus every token has a tile for any offsets: a tile belongs to the
last clip that begins at or before it, and that clip owns every token that no later clip claims.
"""

import triton
import triton.language as tl


def tile_count(total: int, clips: int, block: int) -> int:
    """Upper bound of the tiles of `block` tokens for `clips` clips of `total` tokens and the tokens after the last."""
    return total // block + clips + 1


@triton.jit
def find_clip(
    cu_seqlens: tl.tensor,
    clips: tl.tensor,
    total: tl.tensor,
    tile: tl.tensor,
    BLOCK: tl.constexpr,
    FAN: tl.constexpr = 512,
) -> tl.tensor:
    """Index of the clip that owns `tile`; `clips` for the tokens after the last. Scans FAN offsets at a time."""
    found = 0
    for start in range(0, clips + 1, FAN):
        candidates = start + tl.arange(0, FAN)
        exists = candidates <= clips
        begins = tl.minimum(tl.maximum(tl.load(cu_seqlens + candidates, mask=exists, other=0), 0), total)
        begun = exists & (begins // BLOCK + candidates <= tile)
        found = tl.maximum(found, tl.max(tl.where(begun, candidates, 0), 0))
    return found


@triton.jit
def clip_extent(
    cu_seqlens: tl.tensor, clip: tl.tensor, clips: tl.tensor, total: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """First token and length of a clip, clamped to the tensor; index `clips` means the tokens after the last clip."""
    begin = tl.load(cu_seqlens + clip)
    end = tl.load(cu_seqlens + clip + 1, mask=clip < clips, other=total)
    begin = tl.where(clip == 0, 0, tl.minimum(tl.maximum(begin, 0), total))
    return begin, tl.minimum(tl.maximum(end, begin), total) - begin


@triton.jit
def find_rows(
    cu_rows: tl.tensor,
    cu_columns: tl.tensor,
    clips: tl.tensor,
    total_rows: tl.tensor,
    total_columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Tile of a program on axis 0 of the grid: its first row in the clip, then the clip's rows and columns.

    Rows and columns are each given as first token and length. If the first row is not below the length of the rows, the
    tile is empty.
    """
    tile = tl.program_id(0)
    clip = find_clip(cu_rows, clips, total_rows, tile, BLOCK)
    begin_rows, rows = clip_extent(cu_rows, clip, clips, total_rows)
    begin_columns, columns = clip_extent(cu_columns, clip, clips, total_columns)
    first = (tile - (begin_rows // BLOCK + clip)) * BLOCK
    return first, begin_rows, rows, begin_columns, tl.where(clip < clips, columns, 0)


@triton.jit
def load_rows(
    base: tl.tensor,
    stride: tl.tensor,
    present: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tensor:
    """`[ROWS, BLOCK_D]` at `base`; 0 for rows >= `present` and channels >= HEAD_DIM."""
    rows = tl.arange(0, ROWS)[:, None]
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = rows < present
    if HEAD_DIM < BLOCK_D:
        mask = mask & (channels < HEAD_DIM)
    return tl.load(base + rows * stride + channels, mask=mask, other=0.0)


@triton.jit
def store_rows(
    base: tl.tensor,
    stride: tl.tensor,
    present: tl.tensor,
    tile: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Stores the first `present` rows and HEAD_DIM channels of `tile`, `[ROWS, BLOCK_D]`, in the dtype of `base`."""
    rows = tl.arange(0, ROWS)[:, None]
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = rows < present
    if HEAD_DIM < BLOCK_D:
        mask = mask & (channels < HEAD_DIM)
    tl.store(base + rows * stride + channels, tile.to(base.dtype.element_ty), mask=mask)
