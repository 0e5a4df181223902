"""Blocks that a score matrix is worked through in, chosen by area: few rows against many columns are one block."""

from __future__ import annotations

from math import isqrt

# Rows and columns of a block begin at multiples of this, and a block is stored in multiples of it: no tile is larger.
TILE = 256


def whole_tiles(size: int) -> int:
    """The least multiple of TILE that holds `size`, and at least one."""
    return max(1, -(-size // TILE)) * TILE


def block_shape(rows: int, columns: int, area: int, most_rows: int = 0) -> tuple[int, int]:
    """Rows and columns of the blocks of a `[rows, columns]` matrix, multiples of TILE.

    Blocks are square unless a dimension is short, and of one size but for the last: none is of a few tiles only.

    Args:
        area: elements of a block at most, but that a block has a tile.
        most_rows: a limit that is rounded up to whole tiles; 0: none.
    """
    block_rows = _even(rows, min(whole_tiles(most_rows), area // TILE) if most_rows else isqrt(area))
    block_columns = _even(columns, area // block_rows)
    if not most_rows:
        block_rows = _even(rows, area // block_columns)
    return block_rows, block_columns


def blocks(size: int, block: int) -> list[tuple[int, int]]:
    """`(begin, end)` of the blocks of a dimension."""
    return [(begin, min(begin + block, size)) for begin in range(0, size, block)]


def _even(size: int, most: int) -> int:
    count = max(1, -(-size // max(TILE, most // TILE * TILE)))
    return whole_tiles(-(-size // count))
