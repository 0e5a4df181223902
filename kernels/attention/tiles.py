"""Tile shapes of the attention kernels by kernel, dtype, head dimension, window and compute capability.

They do not depend on lengths or the number of clips, so the bits of a clip do not depend on the batch, and no length
causes tuning or recompilation. They are not yet measured on a GPU, but chosen from ptxas output and instruction counts.

- No kernel spills. 64 rows are one warpgroup's `wgmma`. 4 warps per program let several programs share a
  multiprocessor, so that the products of one overlap the exponentials of another, which take as long at 64 channels.
- Limiting the forward to 128 registers, for a fourth program per multiprocessor, spills with Triton 3.9, not with 3.7.
- Clips of 4 to 750 tokens (uniform lengths) fill 92 % of tiles of 64 rows, 85 % of tiles of 128.
- With a narrow window a tile of R rows computes scores for at least R + 96 keys, of which each row uses 97.
- The dK, dV kernel takes 32 queries per step in a window: two thirds of the registers of 64, so three programs per
  multiprocessor instead of two, and no wasted step in a narrow window. Shared memory is then as busy as the tensor
  cores, not busier.
- For 256 channels on sm_90, the dK, dV kernel sums 32 keys per program, too few rows for `wgmma`: 64 spill.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from slap_fast.kernels import variants


class Tile(NamedTuple):
    """Tile shape and launch options of one kernel.

    Attributes:
        queries: query rows of a tile.
        keys: key rows of a tile.
        warps: per program.
        stages: of the load pipeline.
        branch: skip the masks, by a branch, in steps where every row sees all columns. A narrow window has few such
            steps, but without the branch LLVM packs the comparisons into bit masks: 60 of 480 instructions on sm_90.
            For the branch, Triton 3.7 on sm_80 moves the scores through shared memory, which costs more than the masks
            in the backward, and more than the packing in a narrow window.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    branch: bool = True


# (kernel, bytes per element) -> {largest head dimension: tile}.
_Tables = dict[tuple[str, int], dict[int, Tile]]

# Up to 227 KiB of shared memory per block, and wgmma: sm_90, sm_100.
_LARGE: _Tables = {
    ("forward", 2): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 8, 2)},
    ("grad_q", 2): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
    ("grad_kv", 2): {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 8, 2), 256: Tile(32, 32, 8, 2)},
    ("forward", 4): {64: Tile(64, 32, 4, 2), 128: Tile(16, 32, 4, 1)},
    ("grad_q", 4): {64: Tile(64, 32, 4, 2), 128: Tile(16, 16, 4, 1)},
    ("grad_kv", 4): {64: Tile(16, 32, 4, 2), 128: Tile(16, 16, 4, 1, branch=False)},
}

# Up to 99 KiB of shared memory per block: sm_80, sm_86, sm_89 and sm_120.
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


# Variants for 16-bit heads of 33 to 64 channels on sm_90 and sm_100. Counts are from SASS of Triton 3.7 for sm_90:
# instructions per step, registers per thread, and concurrent warps per multiprocessor. A step of 64 x 64 keeps the
# tensor cores busy for 256 clocks, so the kernels are bound by instructions.
_VARIANTS: dict[str, dict[str, Tile]] = {
    # Per 64 x 64, in order: 362 instructions with 128 registers and 16 warps; 290, 214 and 8; 320, 252 and 8; 376, 142
    # and 12. In the first, two warpgroups share the keys, as in FlashAttention-3. The wider ones leave few warps to
    # hide latency.
    "attention_forward_global": {
        "128x64": Tile(128, 64, 8, 2),
        "128x128": Tile(128, 128, 8, 2),
        "64x128": Tile(64, 128, 4, 2),
        "64x64": Tile(64, 64, 4, 2),
    },
    # A window of 97 takes 3 steps of 413 instructions with 12 warps, or 5 of 271 with 16. Tiles of 128 queries would
    # compute scores for 224 keys instead of 160.
    "attention_forward_local": {"64x64": Tile(64, 64, 4, 2), "64x32": Tile(64, 32, 4, 2)},
    # With the window 3 steps of 359 with 12 warps, or 5 of 220 with 16; without a window 326 or 390 per 64 x 64.
    "attention_grad_q": {"64x64": Tile(64, 64, 4, 2), "64x32": Tile(64, 32, 4, 2)},
    # Per 64 x 64: 375 with 8 warps, or 464 with 12.
    "attention_grad_kv_global": {"64x64": Tile(64, 64, 4, 2), "32x64": Tile(32, 64, 4, 2)},
    # With the window 5 steps of 246 with 12 warps, or 3 of 409 with 8.
    "attention_grad_kv_local": {"32x64": Tile(32, 64, 4, 2), "64x64": Tile(64, 64, 4, 2)},
}


def tile_for(
    kernel: str, head_dim: int, dtype: torch.dtype, *, left: int, right: int, capability: tuple[int, int]
) -> Tile:
    """The tile of kernel "forward", "grad_q" or "grad_kv"; -1 is an unlimited side of the window."""
    large = capability[0] in (9, 10)
    narrow = left >= 0 and right >= 0 and left + right < 256
    whole = left < 0 and right < 0
    if large and dtype.itemsize == 2 and 32 < head_dim <= 64:
        window = "local" if narrow else "global" if whole else "wide"
        for name in (f"attention_{kernel}_{window}", f"attention_{kernel}"):
            if name in _VARIANTS:
                return _VARIANTS[name][variants.chosen(name)]
    table = (_LARGE if large else _SMALL)[kernel, dtype.itemsize]
    tile = table[min(limit for limit in table if limit >= head_dim)]
    return tile._replace(branch=tile.branch and (large or not narrow))
