"""Which clip a program works on, found on the device: a map from tiles to clips that costs no launch and no memory.

Clip n owns the tiles from `cu_seqlens[n] // BLOCK + n` up to where clip n + 1 begins. That is never fewer than
`cdiv(length, BLOCK)`, since floor(a + b) >= floor(a) + floor(b), and in all `total // BLOCK + N`, which the host knows.
At most one tile a clip is empty, about half a tile on average. The other ways cost more: a padded grid of
`cdiv(max_seqlen, BLOCK) * N` programs is three quarters empty on clips of 4 to 750 tokens, and one long clip among
5,000 short ones makes it millions; exact prefix sums need a launch and a buffer of their own before every pass.

A clip's tiles begin at its first token, whatever is packed around it, so its bits do not depend on its company.
"""

import triton
import triton.language as tl


def tile_count(total: int, clips: int, block: int) -> int:
    """Tiles of `block` tokens that hold `clips` clips of `total` tokens, however they are split."""
    return total // block + clips


@triton.jit
def find_clip(
    cu_seqlens: tl.tensor, clips: tl.tensor, tile: tl.tensor, BLOCK: tl.constexpr, FAN: tl.constexpr = 64
) -> tl.tensor:
    """The clip that owns `tile`: FAN clips are looked at at once, so 5,000 take three dependent loads."""
    low = 0
    span = clips
    while span > 1:
        step = tl.cdiv(span, FAN)
        candidates = low + tl.arange(0, FAN) * step
        inside = candidates < low + span
        first_tiles = tl.load(cu_seqlens + candidates, mask=inside, other=0) // BLOCK + candidates
        begun = tl.sum((inside & (first_tiles <= tile)).to(tl.int32), 0)
        skipped = tl.maximum(begun - 1, 0) * step
        low += skipped
        span = tl.minimum(step, span - skipped)
    return low


@triton.jit
def clip_extent(cu_seqlens: tl.tensor, clip: tl.tensor, total: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """First token and length of a clip, held inside the tensor: offsets on a GPU reach the kernels unchecked."""
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + clip), 0), total)
    end = tl.minimum(tl.maximum(tl.load(cu_seqlens + clip + 1), begin), total)
    return begin, end - begin


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
