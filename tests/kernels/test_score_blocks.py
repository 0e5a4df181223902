from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slap_fast.kernels.scores.blocks import TILE, block_shape, blocks


@given(st.integers(0, 1 << 21), st.integers(0, 1 << 21), st.integers(16, 28), st.integers(0, 1 << 21))
def test_blocks_are_whole_tiles_of_one_size_within_their_area(
    rows: int, columns: int, log_area: int, max_rows: int
) -> None:
    block_rows, block_columns = block_shape(rows, columns, 1 << log_area, max_rows)
    assert block_rows % TILE == block_columns % TILE == 0
    assert TILE * TILE <= block_rows * block_columns <= max(1 << log_area, TILE * TILE)
    if max_rows:
        assert block_rows < max_rows + TILE
    for size, block in ((rows, block_rows), (columns, block_columns)):
        ranges = blocks(size, block)
        assert sum(end - begin for begin, end in ranges) == size
        assert all(end - begin == block for begin, end in ranges[:-1])


def test_few_rows_against_many_columns_are_one_block() -> None:
    assert block_shape(200, 1 << 20, 1 << 28) == (256, 1 << 20)
    assert block_shape(1 << 20, 1, 1 << 28) == (1 << 20, 256)
    assert block_shape(1 << 15, 1 << 15, 1 << 28) == (1 << 14, 1 << 14)
    assert block_shape((1 << 14) + 1, 1 << 15, 1 << 28)[0] < 9000  # no block of one row
