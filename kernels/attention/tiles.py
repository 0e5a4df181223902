"""Tile shapes of the attention kernels, as data: by kernel, dtype, head dimension, window and capability.

They depend on nothing that changes from batch to batch, so a clip's bits do not depend on its company, and nothing is
tuned or compiled anew for a length. No GPU has measured them yet: they were chosen by what ptxas says and by counting.

- Nothing spills. 64 rows are one warpgroup's `wgmma`; 4 warps a program let several programs share a multiprocessor,
  and overlap the products of one with the exponentials of another, which at head dimension 64 take as long.
- To cap the forward at 128 registers, for a fourth program a multiprocessor, spills with Triton 3.9, not with 3.7.
- Clips of 4 to 750 tokens fill tiles of 64 rows to 92 % (lengths uniform), tiles of 128 to 85 %.
- In a narrow window a tile of R rows computes scores for R + 96 keys or more, of which each row uses 97.
- Backward by keys takes 32 queries at a time in a window: two thirds of the registers of 64, so three programs instead
  of two, and no step wasted on a narrow one. Shared memory is then as busy as the tensor cores, not busier.
- Backward for 256 channels on sm_90 sums 32 keys a program, too few rows for `wgmma`: 64 spill.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from slap_fast.kernels import variants


class Tile(NamedTuple):
    """One kernel's shape.

    Attributes:
        queries, keys: rows of a tile on either side.
        warps: of a program.
        stages: of the pipeline that loads ahead.
        branch: apply the masks in a branch, around which steps go that every row sees whole. In a narrow window there
            are hardly any, but without a branch LLVM packs the comparisons into words of bits: on sm_90 60 of 480
            instructions. On sm_80 Triton 3.7 moves the scores through shared memory for such a branch, which costs more
            than the masks in the backward, and more than the packing in a narrow window.
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


# For 16-bit heads of 33 to 64 channels on sm_90 and sm_100, by variant. Counted in SASS of Triton 3.7 for sm_90:
# instructions of a step, registers of a thread, and warps that run at once on a multiprocessor. A step of 64 x 64 keeps
# the tensor cores busy for 256 clocks, so instructions decide.
_CANDIDATES: dict[str, dict[str, Tile]] = {
    # Per 64 x 64: 362 with 128 registers and 16 warps; 290, 214 and 8; 320, 252 and 8; 376, 142 and 12. In the first,
    # two groups of warps share the keys, as in FlashAttention-3; the wider ones leave few warps to hide the waiting.
    "attention_forward_global": {
        "128x64": Tile(128, 64, 8, 2),
        "128x128": Tile(128, 128, 8, 2),
        "64x128": Tile(64, 128, 4, 2),
        "64x64": Tile(64, 64, 4, 2),
    },
    # A window of 97 takes 3 steps of 413 in 12 warps, or 5 of 271 in 16. 128 queries would see 224 keys, not 160.
    "attention_forward_local": {"64x64": Tile(64, 64, 4, 2), "64x32": Tile(64, 32, 4, 2)},
    # In the window 3 steps of 359 in 12 warps, or 5 of 220 in 16; without, 326 or 390 per 64 x 64.
    "attention_grad_q": {"64x64": Tile(64, 64, 4, 2), "64x32": Tile(64, 32, 4, 2)},
    # Per 64 x 64: 375 in 8 warps, or 464 in 12.
    "attention_grad_kv_global": {"64x64": Tile(64, 64, 4, 2), "32x64": Tile(32, 64, 4, 2)},
    # In the window 5 steps of 246 in 12 warps, or 3 of 409 in 8.
    "attention_grad_kv_local": {"32x64": Tile(32, 64, 4, 2), "64x64": Tile(64, 64, 4, 2)},
}


def tile_for(
    kernel: str, head_dim: int, dtype: torch.dtype, *, left: int, right: int, capability: tuple[int, int]
) -> Tile:
    """The tile of "forward", "grad_q" or "grad_kv" in a window, whose sides are -1 where there is no limit."""
    large = capability[0] in (9, 10)
    narrow = left >= 0 and right >= 0 and left + right < 256
    whole = left < 0 and right < 0
    if large and dtype.itemsize == 2 and 32 < head_dim <= 64:
        window = "local" if narrow else "global" if whole else "wide"
        for name in (f"attention_{kernel}_{window}", f"attention_{kernel}"):
            if name in _CANDIDATES:
                return _CANDIDATES[name][variants.chosen(name)]
    table = (_LARGE if large else _SMALL)[kernel, dtype.itemsize]
    tile = table[min(limit for limit in table if limit >= head_dim)]
    return tile._replace(branch=tile.branch and (large or not narrow))
