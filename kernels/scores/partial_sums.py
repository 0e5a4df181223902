"""Partial sums of tiles over their rows or columns, in a workspace, and the kernel that folds them in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels.scores.tiles import exp, finite_or_zero

# Scores of a block of tiles that is folded at once: 16,384 x 16,384 unless a dimension is short.
AREA = 1 << 28
_FOLD = 64
# Tiles that one program folds, at most: a few rows with thousands of tiles would keep few programs busy.
_MAX_TILES = 512


@triton.jit
def nothing(BLOCK: tl.constexpr) -> tuple:
    """Maximum, sum and third sum of an empty set."""
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
    """Store a tile's partial sums of its rows: `(maximum, sum, third sum)`, in slots of `slot` elements."""
    largest, total, third = rows
    row_parts += row
    tl.store(row_parts, largest, mask=row < workspace_r)
    tl.store(row_parts + slot, total, mask=row < workspace_r)
    if HAS_THIRD:
        tl.store(row_parts + 2 * slot, third, mask=row < workspace_r)


@triton.jit(
    do_not_specialize=["tiles", "share", "pitch", "stride_t", "stride_b", "count", "begin", "total"],
    do_not_specialize_on_alignment=["flags"],
)
def fold_kernel(
    parts: tl.tensor,  # [streams, SLOTS, tiles, pitch]
    running: tl.tensor,  # [streams, SLOTS, total]
    flags: tl.tensor,  # [tiles, blocks], if FLAGGED
    tiles: tl.tensor,
    share: tl.tensor,
    pitch: tl.tensor,
    stride_t: tl.tensor,
    stride_b: tl.tensor,
    count: tl.tensor,
    begin: tl.tensor,
    total: tl.tensor,
    SLOTS: tl.constexpr,
    EXPONENTIAL: tl.constexpr,
    WEIGHTED: tl.constexpr,
    FLAGGED: tl.constexpr,
    BLOCK: tl.constexpr = 64,
    BLOCK_T: tl.constexpr = 32,
) -> None:
    """Fold the partial sums of rows or columns `begin..begin + count` into `running`.

    Slots: a maximum, a sum (relative to `exp(maximum)` if EXPONENTIAL), a third sum (the same if WEIGHTED). If FLAGGED,
    a tile has stored partial sums only if the flag of its block of FLAGGED rows or columns is set. With several
    programs per row or column, each folds a share of the tiles, not including `running`, and stores its result in a
    `count`-sized slice of its own.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stream = tl.program_id(1)
    parts += stream * SLOTS * tiles * pitch + index
    running += tl.cast(stream * SLOTS, tl.int64) * total + begin + index
    running += tl.program_id(2) * count
    inside = index < count
    known = inside & (tl.num_programs(2) == 1)
    steps = tl.arange(0, BLOCK_T)[:, None]
    largest = tl.load(running, mask=known, other=float("-inf"))
    total_sum = tl.zeros([BLOCK], tl.float32)
    third = tl.zeros([BLOCK], tl.float32)
    if SLOTS > 1:
        total_sum = tl.load(running + total, mask=known, other=0.0)
    if SLOTS > 2:
        third = tl.load(running + 2 * tl.cast(total, tl.int64), mask=known, other=0.0)
    last = tl.minimum((tl.program_id(2) + 1) * share, tiles)
    for first in range(tl.program_id(2) * share, last, BLOCK_T):
        mask = inside[None, :] & (first + steps < last)
        if FLAGGED:
            flag = flags + tl.cast(first + steps, tl.int64) * stride_t + tl.program_id(0) * BLOCK // FLAGGED * stride_b
            mask = mask & (tl.load(flag, mask=first + steps < last, other=0) != 0)
        here = parts[None, :] + (first + steps) * pitch  # [BLOCK_T, BLOCK]
        part_largest = tl.load(here, mask=mask, other=float("-inf"))
        part_sum = tl.zeros_like(part_largest)
        part_third = tl.zeros_like(part_largest)
        if SLOTS > 1:
            part_sum = tl.load(here + tiles * pitch, mask=mask, other=0.0)
        if SLOTS > 2:
            part_third = tl.load(here + 2 * tiles * pitch, mask=mask, other=0.0)
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
    if SLOTS > 1:
        tl.store(running + total, total_sum, mask=inside)
    if SLOTS > 2:
        tl.store(running + 2 * tl.cast(total, tl.int64), third, mask=inside)


def running(streams: int, slots: int, count: int, device: torch.device) -> Tensor:
    """`[streams, slots, count]` sums over empty sets: maximum -inf, the others 0."""
    sums = torch.zeros(streams, slots, count, dtype=torch.float32, device=device)
    sums[:, 0] = float("-inf")
    return sums


def fold(
    parts: Tensor,
    sums: Tensor,
    tiles: int,
    begin: int,
    count: int,
    *,
    pitch: int | None = None,
    flags: Tensor | None = None,
    flagged: int = 0,
    exponential: bool = True,
    weighted: bool = False,
) -> None:
    """Fold `parts` into `sums[..., begin : begin + count]` by `fold_kernel`.

    Args:
        parts: `[streams, slots, tiles, pitch]` float32.
        sums: `[streams, slots, total]` float32.
        tiles: tiles per row or column.
        begin, count: the rows or columns.
        pitch: of `parts`; None: `count`.
        flags: `[tiles, blocks]`, any strides: nonzero where a tile stored the partial sums of a block; None: all did.
        flagged: rows or columns of a block of `flags`, a multiple of 64.
        exponential: the second slot is a sum of exponentials, relative to the maximum.
        weighted: so is the third.
    """
    streams, slots, _ = sums.shape
    shares = triton.cdiv(tiles, _MAX_TILES)
    target = sums
    if shares > 1:
        target = sums.new_empty(streams, slots, shares * count)
    fold_kernel[(triton.cdiv(count, _FOLD), streams, shares)](
        parts, target, target if flags is None else flags, tiles, triton.cdiv(tiles, shares), pitch or count,
        *((0, 0) if flags is None else flags.stride()), count, begin if target is sums else 0, target.shape[2],
        SLOTS=slots, EXPONENTIAL=exponential, WEIGHTED=weighted, FLAGGED=flagged, BLOCK=_FOLD,
        enable_fp_fusion=False,
    )  # fmt: skip
    if target is not sums:
        fold(target, sums, shares, begin, count, exponential=exponential, weighted=weighted)
