"""Which clip a program works on, found on the device: a map from tiles to clips that costs no launch and no memory.

Clip n owns the tiles from `cu_seqlens[n] // BLOCK + n` up to where clip n + 1 begins. That is never fewer than
`cdiv(length, BLOCK)`, since floor(a + b) >= floor(a) + floor(b), and in all `total // BLOCK + N`, which the host knows.
At most one tile a clip is empty, about half a tile on average. The other ways cost more: a padded grid of
`cdiv(max_seqlen, BLOCK) * N` programs is three quarters empty on clips of 4 to 750 tokens, and one long clip among
5,000 short ones makes it millions; exact prefix sums need a launch and a buffer of their own before every pass.

A clip's tiles begin at its first token, whatever is packed around it, so its bits do not depend on its company.

Offsets on a GPU reach the kernels unchecked. The first is read as 0, those beyond the tensor as its end, and the tokens
that follow the last as one more clip, which sees nothing. So every token has a tile, whatever the offsets are: a tile
goes to the last clip that begins at or before it, which is the owner of each token that no later clip claims.
"""

import triton
import triton.language as tl


def tile_count(total: int, clips: int, block: int) -> int:
    """Tiles of `block` tokens that hold `clips` clips of `total` tokens, however they are split, and what follows."""
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
    """The clip that owns `tile`, `clips` for what follows the last: FAN are looked at at once, without a search."""
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
    """First token and length of a clip, held inside the tensor; clip number `clips` is what follows the last."""
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
    """What a program of the grid's axis 0 works on: its first row in the clip, then the clip's rows and columns.

    Both as first token and length. The first row may lie beyond the last: then the tile is empty.
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
    """`[ROWS, BLOCK_D]` from `base` on, 0 from row `present` on and beyond HEAD_DIM channels."""
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
    """The first `present` rows and HEAD_DIM channels of `[ROWS, BLOCK_D]`, in the dtype of `base`."""
    rows = tl.arange(0, ROWS)[:, None]
    channels = tl.arange(0, BLOCK_D)[None, :]
    mask = rows < present
    if HEAD_DIM < BLOCK_D:
        mask = mask & (channels < HEAD_DIM)
    tl.store(base + rows * stride + channels, tile.to(base.dtype.element_ty), mask=mask)
