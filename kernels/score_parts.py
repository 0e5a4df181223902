"""Parts of sums over rows and columns that tiles leave in a workspace, and the kernel that folds them in one order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels.score_tiles import exp, finite_or_zero

# Elements of a block of tiles whose parts are folded together: 16,384 x 16,384, unless a dimension is short.
AREA = 1 << 28
BLOCK = 16384
_FOLD = 64


@triton.jit
def nothing(BLOCK: tl.constexpr) -> tuple:
    """Largest logit, sum and similarity of an empty set."""
    zeros = tl.zeros([BLOCK], tl.float32)
    return tl.full([BLOCK], float("-inf"), tl.float32), zeros, zeros


@triton.jit
def store_rows(
    row_parts: tl.tensor,
    row: tl.tensor,
    slot: tl.tensor,
    workspace_r: tl.tensor,
    rows: tl.tuple,
    HAS_THIRD: tl.constexpr,
) -> None:
    """Leave a tile's part of its rows, slots of `slot` elements, in the workspace."""
    largest, total, third = rows
    row_parts += row
    tl.store(row_parts, largest, mask=row < workspace_r)
    tl.store(row_parts + slot, total, mask=row < workspace_r)
    if HAS_THIRD:
        tl.store(row_parts + 2 * slot, third, mask=row < workspace_r)


@triton.jit(do_not_specialize=["tiles", "workspace", "begin", "total"])
def fold_kernel(
    parts: tl.tensor,  # [streams, SLOTS, tiles, workspace]
    running: tl.tensor,  # [streams, SLOTS, total]
    tiles: tl.tensor,
    workspace: tl.tensor,
    begin: tl.tensor,
    total: tl.tensor,
    SLOTS: tl.constexpr,
    EXPONENTIAL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr = 64,
    BLOCK_T: tl.constexpr = 32,
) -> None:
    """Fold the parts of rows, or columns, `begin..begin + workspace` into what was folded before.

    The second slot is relative to the largest if EXPONENTIAL, the third if WEIGHTED.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stream = tl.program_id(1)
    parts += stream * SLOTS * tiles * workspace + index
    running += tl.cast(stream * SLOTS, tl.int64) * total + begin + index
    inside = index < workspace
    steps = tl.arange(0, BLOCK_T)[:, None]
    largest = tl.load(running, mask=inside, other=0.0)
    total_sum = tl.load(running + total, mask=inside, other=0.0)
    third = tl.zeros([BLOCK], tl.float32)
    if SLOTS == 3:
        third = tl.load(running + 2 * tl.cast(total, tl.int64), mask=inside, other=0.0)
    for first in range(0, tiles, BLOCK_T):
        mask = inside[None, :] & (first + steps < tiles)
        here = parts[None, :] + (first + steps) * workspace  # [BLOCK_T, BLOCK]
        part_largest = tl.load(here, mask=mask, other=float("-inf"))
        part_sum = tl.load(here + tiles * workspace, mask=mask, other=0.0)
        part_third = tl.zeros_like(part_sum)
        if SLOTS == 3:
            part_third = tl.load(here + 2 * tiles * workspace, mask=mask, other=0.0)
        new_largest = tl.maximum(largest, tl.max(part_largest, 0))
        if EXPONENTIAL:
            reference = finite_or_zero(new_largest)
            decay = exp(largest - reference)
            weights = exp(part_largest - reference[None, :])
            total_sum = total_sum * decay
            part_sum = part_sum * weights
            if WEIGHTED:
                third = third * decay
                part_third = part_third * weights
        total_sum += tl.sum(part_sum, 0)
        third += tl.sum(part_third, 0)
        largest = new_largest
    tl.store(running, largest, mask=inside)
    tl.store(running + total, total_sum, mask=inside)
    if SLOTS == 3:
        tl.store(running + 2 * tl.cast(total, tl.int64), third, mask=inside)


def running(streams: int, slots: int, count: int, device: torch.device) -> Tensor:
    """`[streams, slots, count]` sums of nothing: largest -inf, the rest 0."""
    sums = torch.zeros(streams, slots, count, dtype=torch.float32, device=device)
    sums[:, 0] = float("-inf")
    return sums


def fold(
    parts: Tensor, sums: Tensor, tiles: int, begin: int, count: int, *, exponential: bool = True, weighted: bool = False
) -> None:
    """Launch `fold_kernel` on `[streams, slots, tiles, count]` parts of what `sums` holds from `begin` on."""
    streams, slots, total = sums.shape
    fold_kernel[(triton.cdiv(count, _FOLD), streams)](
        parts, sums, tiles, count, begin, total, SLOTS=slots, EXPONENTIAL=exponential, WEIGHTED=weighted, BLOCK=_FOLD,
        enable_fp_fusion=False,
    )  # fmt: skip
