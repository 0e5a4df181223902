"""Row and column statistics of contrastive logits: a kernel of tiles, whose parts are folded, and two that finish.

Statistics come as streams, one of negatives and with ids one of positives: the largest logit, the sum of `exp(logit -
largest)` or of the pair losses, the sum of similarities. A tile leaves its part of each stream in a workspace, and
parts are folded in one fixed order: no atomics, the same bits from run to run. Without ids a row has one positive,
and the one tile that holds it writes it down.
"""

import triton
import triton.language as tl

from slap_fast.kernels.score_parts import nothing, store_rows
from slap_fast.kernels.score_tiles import exp, finite_or_zero, logits_of, pieces, scores, tile_of_program


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + exp(x)), to float32's relative accuracy however small: a sum over a million negatives needs it."""
    e = exp(-tl.abs(x))
    ratio = tl.full(e.shape, 0.0051261018961668015, tl.float32)  # log1p(e) / e on [0, 1], error 1.6e-7
    ratio = tl.fma(ratio, e, -0.029074065387248993)
    ratio = tl.fma(ratio, e, 0.0775160863995552)
    ratio = tl.fma(ratio, e, -0.13602247834205627)
    ratio = tl.fma(ratio, e, 0.19076880812644958)
    ratio = tl.fma(ratio, e, -0.2483539879322052)
    ratio = tl.fma(ratio, e, 0.3331812024116516)
    ratio = tl.fma(ratio, e, -0.4999944567680359)
    ratio = tl.fma(ratio, e, 1.0)
    return tl.fma(ratio, e, tl.maximum(x, 0.0))


@triton.jit
def is_positive(
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    HAS_IDS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """`[BLOCK_R, BLOCK_C]` mask of the tile's positives, and whether there is any."""
    r = row + tl.arange(0, BLOCK_R)
    c = column + tl.arange(0, BLOCK_C)
    if HAS_IDS:
        row_keys = tl.load(audio_keys + r, mask=r < rows, other=-1)
        column_keys = tl.load(text_keys + c, mask=c < columns, other=-2)
        positive = row_keys[:, None] == column_keys[None, :]
        found = tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0
    else:
        own = tl.where(r + offset < columns, r + offset, -1)
        positive = own[:, None] == c[None, :]
        found = (row + offset < column + BLOCK_C) & (column < row + offset + BLOCK_R)
    return positive, found


@triton.jit
def _reduce(
    logits: tl.tensor,
    signed: tl.tensor,
    similarity: tl.tensor,
    rows: tl.tuple,
    column_parts: tl.tensor,
    column: tl.tensor,
    slot: tl.tensor,
    workspace_c: tl.tensor,
    INFONCE: tl.constexpr,
) -> tuple:
    """Take a piece into the rows' largest logit, sum and similarity, and leave its columns' in the workspace.

    A logit of -inf takes no part. `signed` is what the pair loss sees.
    """
    row_largest, row_sum, row_similarity = rows
    row_similarity += tl.sum(similarity, 1)
    new_largest = tl.maximum(row_largest, tl.max(logits, 1))
    column_largest = tl.max(logits, 0)
    inside = column < workspace_c
    column_parts += column
    tl.store(column_parts, column_largest, mask=inside)
    if INFONCE:
        reference = finite_or_zero(new_largest)
        row_sum = row_sum * exp(row_largest - reference) + tl.sum(exp(logits - reference[:, None]), 1)
        column_sum = tl.sum(exp(logits - finite_or_zero(column_largest)[None, :]), 0)
        tl.store(column_parts + slot, column_sum, mask=inside)
    else:
        row_sum += tl.sum(softplus(signed), 1)
    return new_largest, row_sum, row_similarity


@triton.jit(
    do_not_specialize=[
        "begin_r", "begin_c", "rows", "columns", "offset", "tiles_r", "tiles_c", "workspace_r", "workspace_c",
    ]
)  # fmt: skip
def statistics_kernel(
    audio: tl.tensor,
    text: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    positive_similarity: tl.tensor,  # [R], without ids
    row_parts: tl.tensor,  # [streams, 3, tiles_c, workspace_r]
    column_parts: tl.tensor,  # [streams, 2, tiles_r, workspace_c]
    stride_a: tl.tensor,
    stride_t: tl.tensor,
    begin_r: tl.tensor,
    begin_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    workspace_r: tl.tensor,
    workspace_c: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c)
    row = begin_r + tile_r * BLOCK_R
    column = begin_c + tile_c * BLOCK_C
    tile = scores(
        audio, text, stride_a, stride_t, row, column, rows, columns, DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION
    )
    r = row + tl.arange(0, BLOCK_R)
    multiplier = tl.load(scale)
    added = 0.0
    if HAS_BIAS:
        added = tl.load(bias)
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    slot_r = tiles_c * workspace_r
    slot_c = tiles_r * workspace_c
    column_parts += tile_r * workspace_c
    negatives = nothing(BLOCK_R)
    positives = nothing(BLOCK_R)
    similarities = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        similarity = similarities[piece]
        first = column + piece * WIDTH
        c = tile_c * BLOCK_C + piece * WIDTH + tl.arange(0, WIDTH)
        shift = tl.where(c < workspace_c, added, float("-inf"))
        logits = logits_of(similarity, multiplier, shift, r < rows)
        positive, found = is_positive(audio_keys, text_keys, row, first, rows, columns, offset, HAS_IDS, BLOCK_R, WIDTH)
        if found:
            others = tl.where(positive, float("-inf"), logits)
            negatives = _reduce(
                others, others, tl.where(positive, 0.0, similarity),
                negatives, column_parts, c, slot_c, workspace_c, INFONCE,
            )  # fmt: skip
            similarity = tl.where(positive, similarity, 0.0)
            if HAS_IDS:
                positives = _reduce(
                    tl.where(positive, logits, float("-inf")), tl.where(positive, -logits, float("-inf")), similarity,
                    positives, column_parts + 2 * slot_c, c, slot_c, workspace_c, INFONCE,
                )  # fmt: skip
            else:
                own = (r < rows) & (r + offset >= first) & (r + offset < tl.minimum(first + WIDTH, columns))
                tl.store(positive_similarity + r, tl.sum(similarity, 1), mask=own)
        else:
            negatives = _reduce(logits, logits, similarity, negatives, column_parts, c, slot_c, workspace_c, INFONCE)
            if HAS_IDS:
                largest, total, _ = nothing(WIDTH)
                tl.store(column_parts + 2 * slot_c + c, largest, mask=c < workspace_c)
                if INFONCE:
                    tl.store(column_parts + 3 * slot_c + c, total, mask=c < workspace_c)
    r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    row_parts += tile_c * workspace_r
    store_rows(row_parts, r, slot_r, workspace_r, negatives, True)
    if HAS_IDS:
        store_rows(row_parts + 3 * slot_r, r, slot_r, workspace_r, positives, True)


@triton.jit
def _merge(
    largest: tl.tensor, total: tl.tensor, other_largest: tl.tensor, other_total: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Largest and log of the sum of exponentials, relative to it, of two streams together."""
    whole = tl.maximum(largest, other_largest)
    reference = finite_or_zero(whole)
    return whole, tl.log(total * exp(largest - reference) + other_total * exp(other_largest - reference))


@triton.jit(do_not_specialize=["rows", "columns", "offset"])
def finish_rows_kernel(
    running: tl.tensor,  # [streams, 3, R]
    positive_similarity: tl.tensor,  # [R], without ids
    counts: tl.tensor,  # [R], with ids
    scale: tl.tensor,
    bias: tl.tensor,
    row_loss: tl.tensor,
    row_positive: tl.tensor,
    row_facts: tl.tensor,  # [4, R]
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr = 256,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < rows
    stride = tl.cast(rows, tl.int64)
    multiplier = tl.load(scale)
    running += index
    largest = tl.load(running, mask=inside, other=0.0)
    total = tl.load(running + stride, mask=inside, other=0.0)
    similarity = tl.load(running + 2 * stride, mask=inside, other=0.0)
    if HAS_IDS:
        running += 3 * stride
        own_largest = tl.load(running, mask=inside, other=0.0)
        own_total = tl.load(running + stride, mask=inside, other=0.0)
        own_similarity = tl.load(running + 2 * stride, mask=inside, other=0.0)
        positives = tl.load(counts + index, mask=inside, other=1).to(tl.float32)
    else:
        column = index + offset
        present = inside & (column >= 0) & (column < columns)
        own_similarity = tl.load(positive_similarity + index, mask=present, other=0.0)
        logit = own_similarity * multiplier
        if HAS_BIAS:
            logit = tl.fma(own_similarity, multiplier, tl.load(bias))
        own_largest = tl.where(present, logit, float("-inf"))
        own_total = tl.where(present, 1.0 if INFONCE else softplus(-logit), 0.0)
        positives = present.to(tl.float32)
    own_similarity /= tl.maximum(positives, 1.0)
    if INFONCE:
        whole, loss = _merge(largest, total, own_largest, own_total)
        positive = own_similarity * multiplier
    else:
        whole = tl.maximum(largest, own_largest)
        loss = total + own_total
        positive = tl.zeros_like(loss)
    tl.store(row_loss + index, loss, mask=inside)
    tl.store(row_positive + index, positive, mask=inside)
    row_facts += index
    tl.store(row_facts, own_similarity, mask=inside)
    tl.store(row_facts + stride, similarity / tl.maximum(columns - positives, 1.0), mask=inside)
    tl.store(row_facts + 2 * stride, (own_largest > largest).to(tl.float32), mask=inside)
    tl.store(row_facts + 3 * stride, whole, mask=inside)


@triton.jit(do_not_specialize=["rows", "columns", "offset"])
def finish_columns_kernel(
    running: tl.tensor,  # [streams, 2, C]
    positive_similarity: tl.tensor,  # [R], without ids
    scale: tl.tensor,
    bias: tl.tensor,
    column_loss: tl.tensor,
    column_best: tl.tensor,  # [2, C]
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr = 256,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < columns
    stride = tl.cast(columns, tl.int64)
    running += index
    largest = tl.load(running, mask=inside, other=0.0)
    total = tl.load(running + stride, mask=inside, other=0.0)
    if HAS_IDS:
        own_largest = tl.load(running + 2 * stride, mask=inside, other=0.0)
        own_total = tl.load(running + 3 * stride, mask=inside, other=0.0)
    else:
        row = index - offset
        present = inside & (row >= 0) & (row < rows)
        own_similarity = tl.load(positive_similarity + row, mask=present, other=0.0)
        logit = own_similarity * tl.load(scale)
        if HAS_BIAS:
            logit = tl.fma(own_similarity, tl.load(scale), tl.load(bias))
        own_largest = tl.where(present, logit, float("-inf"))
        own_total = present.to(tl.float32)
    if INFONCE:
        _, loss = _merge(largest, total, own_largest, own_total)
    else:
        loss = tl.zeros_like(total)
    tl.store(column_loss + index, loss, mask=inside)
    tl.store(column_best + index, own_largest, mask=inside)
    tl.store(column_best + stride + index, largest, mask=inside)
