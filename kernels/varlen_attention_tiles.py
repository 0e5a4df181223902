"""Tile shapes of the attention kernels, as data: by kernel, dtype, head dimension, window and capability.

They depend on nothing that changes from batch to batch, so a clip's bits do not depend on its company, and nothing is
tuned or compiled anew for a length. No GPU has measured them yet: they were chosen by what ptxas says and by counting.

- Nothing spills. 64 rows are one warpgroup's `wgmma`; 4 warps a program let several programs share a multiprocessor,
  and overlap the products of one with the exponentials of another, which at head dimension 64 take as long.
- To cap the forward at 128 registers, for a fourth program a multiprocessor, spills with Triton 3.9, not with 3.7.
- Clips of 4 to 750 tokens fill tiles of 64 rows to 92 % (lengths uniform), tiles of 128 to 85 %.
- In a narrow window a tile of R rows computes scores for R + 96 keys or more, of which each row uses 97.
- Backward by keys takes 32 queries at a time: two thirds of the registers of 64, so three programs instead of two, and
  no step wasted on a narrow window. Shared memory is then as busy as the tensor cores, not busier.
- Backward for 256 channels on sm_90 sums 32 keys a program, too few rows for `wgmma`: 64 spill.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """One kernel's shape.

    Attributes:
        queries, keys: rows of a tile on either side.
        warps: of a program.
        stages: of the pipeline that loads ahead.
        branch: skip the masks in steps that every row sees whole: most, without a narrow window. On sm_80 Triton 3.7
            moves the scores through shared memory for such a branch in the backward, which costs more than the masks.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    branch: bool = True


# By kernel and bytes an element: largest head dimension -> tile.
_Tables = dict[tuple[str, int], dict[int, Tile]]

# Up to 227 KiB of shared memory a block, and wgmma: sm_90, sm_100.
_LARGE: _Tables = {
    ("forward", 2): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 8, 2)},
    ("grad_q", 2): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
    ("grad_kv", 2): {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 8, 2), 256: Tile(32, 32, 8, 2)},
    ("forward", 4): {64: Tile(64, 32, 4, 2), 128: Tile(16, 32, 4, 1)},
    ("grad_q", 4): {64: Tile(64, 32, 4, 2), 128: Tile(16, 16, 4, 1)},
    ("grad_kv", 4): {64: Tile(16, 32, 4, 2), 128: Tile(16, 16, 4, 1, branch=False)},
}

# Up to 99 KiB of shared memory a block, so that sm_86, sm_89 and sm_120 are served as sm_80 is.
_SMALL: _Tables = {
    ("forward", 2): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
    ("grad_q", 2): {
        64: Tile(64, 32, 4, 2, branch=False),
        128: Tile(64, 64, 8, 2, branch=False),
        256: Tile(32, 32, 8, 2, branch=False),
    },
    ("grad_kv", 2): {
        64: Tile(32, 64, 4, 2, branch=False),
        128: Tile(32, 64, 8, 2, branch=False),
        256: Tile(32, 32, 8, 2, branch=False),
    },
    ("forward", 4): {64: Tile(32, 32, 4, 2), 128: Tile(16, 32, 4, 1)},
    ("grad_q", 4): {64: Tile(32, 32, 4, 2, branch=False), 128: Tile(16, 16, 4, 1, branch=False)},
    ("grad_kv", 4): {64: Tile(16, 32, 4, 2, branch=False), 128: Tile(16, 16, 4, 1, branch=False)},
}


def tile_for(kernel: str, head_dim: int, dtype: torch.dtype, *, narrow: bool, capability: tuple[int, int]) -> Tile:
    """The tile of "forward", "grad_q" or "grad_kv"; in a narrow window hardly a step is seen whole."""
    tables = _LARGE if capability[0] in (9, 10) else _SMALL
    table = tables[kernel, dtype.itemsize]
    tile = table[min(limit for limit in table if limit >= head_dim)]
    return tile._replace(branch=tile.branch and not narrow)
