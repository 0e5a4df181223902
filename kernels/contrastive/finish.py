"""From folded statistics to the results of the forward, one thread per row or column."""

import triton
import triton.language as tl

from slap_fast.kernels.contrastive.statistics import softplus
from slap_fast.kernels.scores.tiles import exp, finite_or_zero


@triton.jit(do_not_specialize=["rows"])
def products_kernel(
    matrix: tl.tensor,  # [R, D]
    vector: tl.tensor,  # [D] float32
    products: tl.tensor,  # [R] float32
    stride: tl.tensor,
    rows: tl.tensor,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Products of rows with a vector, without a float32 copy of the rows."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < rows
    matrix += r.to(tl.int64)[:, None] * stride
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for begin in range(0, DEPTH, BLOCK_D):
        depth = begin + tl.arange(0, BLOCK_D)
        x = tl.load(matrix + depth[None, :], mask=inside[:, None] & (depth < DEPTH)[None, :], other=0.0)
        total += x.to(tl.float32) * tl.load(vector + depth, mask=depth < DEPTH, other=0.0)[None, :]
    tl.store(products + r, tl.sum(total, 1), mask=inside)


@triton.jit
def _merge(
    largest: tl.tensor, total: tl.tensor, other_largest: tl.tensor, other_total: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Maximum of two sets together, and log of their sum of exponentials relative to it."""
    whole = tl.maximum(largest, other_largest)
    reference = finite_or_zero(whole)
    return whole, tl.log(total * exp(largest - reference) + other_total * exp(other_largest - reference))


@triton.jit(do_not_specialize=["rows", "columns", "offset"])
def finish_rows_kernel(
    negatives: tl.tensor,  # [2, R]
    positives: tl.tensor,  # [3, R], with ids
    positive_similarity: tl.tensor,  # [R], without ids
    similarity_sum: tl.tensor,  # [R], over all columns
    counts: tl.tensor,  # [R], with ids
    scale: tl.tensor,
    bias: tl.tensor,
    row_loss: tl.tensor,
    row_positive: tl.tensor,
    row_stats: tl.tensor,  # [4, R]
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr = 256,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < rows
    stride = tl.cast(rows, tl.int64)
    multiplier = tl.load(scale)
    largest = tl.load(negatives + index, mask=inside, other=0.0)
    total = tl.load(negatives + stride + index, mask=inside, other=0.0)
    similarity = tl.load(similarity_sum + index, mask=inside, other=0.0)
    if HAS_IDS:
        positives += index
        own_largest = tl.load(positives, mask=inside, other=0.0)
        own_total = tl.load(positives + stride, mask=inside, other=0.0)
        own_similarity = tl.load(positives + 2 * stride, mask=inside, other=0.0)
        count = tl.load(counts + index, mask=inside, other=1).to(tl.float32)
    else:
        column = index + offset
        present = inside & (column >= 0) & (column < columns)
        own_similarity = tl.load(positive_similarity + index, mask=present, other=0.0)
        logit = tl.fma(own_similarity, multiplier, tl.load(bias))
        own_largest = tl.where(present, logit, float("-inf"))
        own_total = tl.where(present, 1.0 if INFONCE else softplus(-logit), 0.0)
        count = present.to(tl.float32)
    # If all columns are positives, the difference is rounding error.
    others = tl.where(count < columns, similarity - own_similarity, 0.0) / tl.maximum(columns - count, 1.0)
    own_similarity /= tl.maximum(count, 1.0)
    if INFONCE:
        whole, loss = _merge(largest, total, own_largest, own_total)
        positive = own_similarity * multiplier
    else:
        whole = tl.maximum(largest, own_largest)
        loss = total + own_total
        positive = tl.zeros_like(loss)
    tl.store(row_loss + index, loss, mask=inside)
    tl.store(row_positive + index, positive, mask=inside)
    row_stats += index
    tl.store(row_stats, own_similarity, mask=inside)
    tl.store(row_stats + stride, others, mask=inside)
    tl.store(row_stats + 2 * stride, (own_largest > largest).to(tl.float32), mask=inside)
    tl.store(row_stats + 3 * stride, whole, mask=inside)


@triton.jit(do_not_specialize=["rows", "columns", "offset"])
def finish_columns_kernel(
    negatives: tl.tensor,  # [1 or 2, C]
    positives: tl.tensor,  # the same, with ids
    positive_similarity: tl.tensor,  # [R], without ids
    scale: tl.tensor,
    bias: tl.tensor,
    column_loss: tl.tensor,
    column_best: tl.tensor,  # [2, C]
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr = 256,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < columns
    stride = tl.cast(columns, tl.int64)
    largest = tl.load(negatives + index, mask=inside, other=0.0)
    if HAS_IDS:
        own_largest = tl.load(positives + index, mask=inside, other=0.0)
    else:
        row = index - offset
        present = inside & (row >= 0) & (row < rows)
        own_similarity = tl.load(positive_similarity + row, mask=present, other=0.0)
        logit = tl.fma(own_similarity, tl.load(scale), tl.load(bias))
        own_largest = tl.where(present, logit, float("-inf"))
    if INFONCE:
        total = tl.load(negatives + stride + index, mask=inside, other=0.0)
        own_total = tl.load(positives + stride + index, mask=inside, other=0.0) if HAS_IDS else present.to(tl.float32)
        _, loss = _merge(largest, total, own_largest, own_total)
    else:
        loss = tl.zeros([BLOCK], tl.float32)
    tl.store(column_loss + index, loss, mask=inside)
    tl.store(column_best + index, own_largest, mask=inside)
    tl.store(column_best + stride + index, largest, mask=inside)
