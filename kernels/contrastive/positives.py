"""Positives of the contrastive losses: keys of rows and columns, and flags of tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels.scores.blocks import whole_tiles
from slap_fast.kernels.scores.tiles import TileShape

_BLOCK = 128
# Programs that share the positives of a block of rows: most rows have few, but all clips may have the same id.
_SHARES = 8


class Positives(NamedTuple):
    """Positions of the positives.

    Attributes:
        audio_keys, text_keys: `[R]` and `[C]` in whole tiles, int32. Equal for positives; -1 for a row without
            positives, -2 for a row beyond the matrix, -3 for a column beyond it.
        counts: `[R]` int32 number of each row's positives; with ids only.
        flags: `[tiles of R, tiles of C]` int8, whether a tile has a positive; with ids only.
    """

    audio_keys: Tensor
    text_keys: Tensor
    counts: Tensor
    flags: Tensor


@triton.jit(do_not_specialize=["rows", "columns", "offset"])
def keys_kernel(
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    pitch_r: tl.tensor,
    pitch_c: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Keys without ids: the column of the row's own text."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.maximum(index + offset, -1)
    tl.store(audio_keys + index, tl.where(index < rows, own, -2), mask=index < pitch_r)
    tl.store(text_keys + index, tl.where(index < columns, index, -3), mask=index < pitch_c)


@triton.jit(do_not_specialize=["rows", "tiles_c"])
def flag_kernel(
    audio_keys: tl.tensor,
    counts: tl.tensor,
    order: tl.tensor,  # [C] int64: texts sorted by id
    flags: tl.tensor,
    rows: tl.tensor,
    tiles_c: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARES: tl.constexpr,
) -> None:
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts + r, mask=r < rows, other=0)
    begin = tl.load(audio_keys + r, mask=r < rows, other=0)
    flags += (r // BLOCK_R).to(tl.int64) * tiles_c
    # All programs that store to a flag store the same value.
    for index in range(tl.program_id(1), tl.max(count, 0), SHARES):
        own = index < count
        text = tl.load(order + begin + index, mask=own, other=0)
        tl.store(flags + text // BLOCK_C, tl.full([BLOCK], 1, tl.int8), mask=own)


def positives_of(
    rows: int, columns: int, ids: tuple[Tensor, Tensor] | None, offset: int, tile: TileShape, device: torch.device
) -> Positives:
    """Positives by `[R]` and `[C]` ids; without ids, row `r` and column `r + offset`. No host synchronization."""
    pitch_r, pitch_c = whole_tiles(rows), whole_tiles(columns)
    audio_keys = torch.empty(pitch_r, dtype=torch.int32, device=device)
    text_keys = torch.empty(pitch_c, dtype=torch.int32, device=device)
    if ids is None:
        keys_kernel[(max(pitch_r, pitch_c) // _BLOCK,)](
            audio_keys, text_keys, rows, columns, offset, pitch_r, pitch_c, BLOCK=_BLOCK
        )
        return Positives(audio_keys, text_keys, audio_keys, audio_keys)
    audio_ids, text_ids = ids
    ordered, order = text_ids.sort()
    begin = torch.searchsorted(ordered, audio_ids, out_int32=True)
    counts = torch.searchsorted(ordered, audio_ids, out_int32=True, right=True) - begin
    tiles_r, tiles_c = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    flags = torch.zeros(tiles_r, tiles_c, dtype=torch.int8, device=device)
    if rows:
        flag_kernel[(triton.cdiv(rows, _BLOCK), _SHARES)](
            begin, counts, order, flags, rows, tiles_c,
            BLOCK_R=tile.rows, BLOCK_C=tile.columns, BLOCK=_BLOCK, SHARES=_SHARES,
        )  # fmt: skip
    audio_keys.fill_(-2)[:rows] = begin.masked_fill_(counts == 0, -1)
    torch.searchsorted(ordered, text_ids, out_int32=True, out=text_keys.fill_(-3)[:columns])
    return Positives(audio_keys, text_keys, counts, flags)


@triton.jit
def is_plain(
    flags: tl.tensor,
    tile_r: tl.tensor,
    tile_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    HAS_IDS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tensor:
    """Whether the tile has no positive and lies inside the matrix."""
    row = tile_r * BLOCK_R
    column = tile_c * BLOCK_C
    if HAS_IDS:
        found = tl.load(flags + tl.cast(tile_r, tl.int64) * tl.cdiv(columns, BLOCK_C) + tile_c) != 0
    else:
        found = (row + offset < column + BLOCK_C) & (column < row + offset + BLOCK_R)
    return (not found) & (row + BLOCK_R <= rows) & (column + BLOCK_C <= columns)


@triton.jit
def positives_and_inside(
    audio_keys: tl.tensor, text_keys: tl.tensor, r: tl.tensor, c: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Masks of the positives among rows `r` and columns `c`, of rows inside the matrix, and of columns inside it.

    Keys are loaded, though indices could be compared: loaded values need no registers between uses.
    """
    row_keys = tl.load(audio_keys + r)
    column_keys = tl.load(text_keys + c)
    return row_keys[:, None] == column_keys[None, :], row_keys != -2, column_keys != -3
