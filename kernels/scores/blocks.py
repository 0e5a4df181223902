"""Blocks of a score matrix, sized by area: a few rows against many columns are one block."""

from __future__ import annotations

from math import isqrt

# Blocks begin at multiples of this and are stored in multiples of it. No tile is larger.
TILE = 256


def whole_tiles(size: int) -> int:
    """The smallest positive multiple of TILE that holds `size`."""
    return max(1, -(-size // TILE)) * TILE


def block_shape(rows: int, columns: int, area: int, max_rows: int = 0) -> tuple[int, int]:
    """Rows and columns of the blocks of a `[rows, columns]` matrix, multiples of TILE.

    Blocks are square unless a dimension is short, and all but the last have the same size, so that no block has only a
    few tiles.

    Args:
        rows, columns: of the matrix.
        area: elements of a block, at most; a block has at least one tile.
        max_rows: limit, rounded up to whole tiles; 0: none.
    """
    block_rows = _even(rows, min(whole_tiles(max_rows), area // TILE) if max_rows else isqrt(area))
    block_columns = _even(columns, area // block_rows)
    if not max_rows:
        block_rows = _even(rows, area // block_columns)
    return block_rows, block_columns


def blocks(size: int, block: int) -> list[tuple[int, int]]:
    """`(begin, end)` of the blocks of a dimension."""
    return [(begin, min(begin + block, size)) for begin in range(0, size, block)]


def _even(size: int, limit: int) -> int:
    """Size of equal blocks of at most `limit`."""
    count = max(1, -(-size // max(TILE, limit // TILE * TILE)))
    return whole_tiles(-(-size // count))
