"""Row and column statistics of contrastive logits, tile by tile.

Negatives, and with ids also positives, have statistics of their own: the maximum logit, the sum of
`exp(logit - maximum)` or of the pair losses, and for positives the sum of similarities. A tile stores its partial sums
in a workspace, and these are folded in a fixed order: no atomics, the same bits from run to run. Without ids a row has
one positive, whose similarity is stored by the tile that computes it: it must tie with an equal negative.

Nearly all tiles have no positive and lie inside the matrix: these need no mask.
"""

import triton
import triton.language as tl

from slap_fast.kernels.contrastive.positives import is_plain, positives_and_inside
from slap_fast.kernels.scores.tiles import exp, finite_or_zero, logits_of, pieces, stored_or_score_tile, tile_of_program


@triton.jit
def softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + exp(x)), with full relative accuracy for tiny results too: a sum over a million negatives needs it."""
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
def _all_negative(
    tile: tl.tensor,
    multiplier: tl.tensor,
    added: tl.tensor,
    row_parts: tl.tensor,
    column_parts: tl.tensor,
    slot_r: tl.tensor,
    slot_c: tl.tensor,
    INFONCE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Statistics of a tile without positives."""
    # Few wide slices: each reduction over rows costs barriers. Wider slices do not fit into registers.
    WIDTH: tl.constexpr = 64
    PARTS: tl.constexpr = BLOCK_C // WIDTH
    logits = tl.fma(tile, multiplier, added)
    row_largest = tl.max(logits, 1)
    row_sum = tl.zeros([BLOCK_R], tl.float32)
    parts = pieces(logits, PARTS)
    for part in tl.static_range(PARTS):
        c = part * WIDTH + tl.arange(0, WIDTH)
        column_largest = tl.max(parts[part], 0)
        tl.store(column_parts + c, column_largest)
        if INFONCE:
            row_sum += tl.sum(exp(parts[part] - row_largest[:, None]), 1)
            column_sum = tl.sum(exp(parts[part] - column_largest[None, :]), 0)
            tl.store(column_parts + slot_c + c, column_sum)
        else:
            row_sum += tl.sum(softplus(parts[part]), 1)
    r = tl.arange(0, BLOCK_R)
    tl.store(row_parts + r, row_largest)
    tl.store(row_parts + slot_r + r, row_sum)


@triton.jit
def _some(
    tile: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    row_parts: tl.tensor,
    column_parts: tl.tensor,
    slot_r: tl.tensor,
    slot_c: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    of_positives: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """Statistics of the tile's positives or of its negatives."""
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    # Loaded here: otherwise the compiler hoists the logits out of the caller's loop and keeps them in registers.
    multiplier, added = tl.load(scale), tl.load(bias)
    r = row + tl.arange(0, BLOCK_R)
    row_largest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_R] if INFONCE else [BLOCK_R, WIDTH], tl.float32)
    similarities = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        within = piece * WIDTH + tl.arange(0, WIDTH)
        c = column + within
        positive, inside_r, inside_c = positives_and_inside(audio_keys, text_keys, r, c)
        shift = tl.where(inside_c, added, float("-inf"))
        logits = logits_of(similarities[piece], multiplier, shift, inside_r)
        logits = tl.where(positive == of_positives, logits, float("-inf"))
        column_largest = tl.max(logits, 0)
        tl.store(column_parts + within, column_largest)
        new_largest = tl.maximum(row_largest, tl.max(logits, 1))
        if INFONCE:
            reference = finite_or_zero(new_largest)
            row_sum = row_sum * exp(row_largest - reference) + tl.sum(exp(logits - reference[:, None]), 1)
            column_sum = tl.sum(exp(logits - finite_or_zero(column_largest)[None, :]), 0)
            tl.store(column_parts + slot_c + within, column_sum)
        else:
            signed = tl.where(of_positives & (logits != float("-inf")), -logits, logits)
            row_sum += softplus(signed)
        row_largest = new_largest
    row_parts += tl.arange(0, BLOCK_R)
    tl.store(row_parts, row_largest)
    tl.store(row_parts + slot_r, row_sum if INFONCE else tl.sum(row_sum, 1))


@triton.jit
def _own_similarities(
    tile: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIECES: tl.constexpr,
) -> tl.tensor:
    """Sum of each row's similarities with its positives in the tile."""
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    r = row + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R], tl.float32)
    similarities = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        c = column + piece * WIDTH + tl.arange(0, WIDTH)
        positive, _, _ = positives_and_inside(audio_keys, text_keys, r, c)
        total += tl.sum(tl.where(positive, similarities[piece], 0.0), 1)
    return total


@triton.jit(
    do_not_specialize=["first_r", "first_c", "rows", "columns", "offset", "tiles_r", "tiles_c", "slot_r", "slot_c"]
)
def statistics_kernel(
    audio: tl.tensor,
    text: tl.tensor,
    stored: tl.tensor,  # similarities of the block, if STORED
    scale: tl.tensor,
    bias: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    flags: tl.tensor,
    positive_similarity: tl.tensor,  # [R], without ids
    row_parts: tl.tensor,  # [2, with ids 5, tiles of columns, pitch_r]
    column_parts: tl.tensor,  # [2, for pair losses 1; twice as many with ids, tiles of rows, pitch_c]
    stride_a: tl.tensor,
    stride_t: tl.tensor,
    stride_s: tl.tensor,
    first_r: tl.tensor,  # tiles before the block
    first_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    pitch_r: tl.tensor,
    pitch_c: tl.tensor,
    slot_r: tl.tensor,
    slot_c: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    STORED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c)
    row = (first_r + tile_r) * BLOCK_R
    column = (first_c + tile_c) * BLOCK_C
    tile = stored_or_score_tile(
        stored, stride_s, tile_r, tile_c, audio, text, stride_a, stride_t, row, column, rows, columns,
        STORED, DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
    )  # fmt: skip
    row_parts += tile_c * pitch_r + tile_r * BLOCK_R
    column_parts += tile_r * pitch_c + tile_c * BLOCK_C
    plain = is_plain(flags, first_r + tile_r, first_c + tile_c, rows, columns, offset, HAS_IDS, BLOCK_R, BLOCK_C)
    if plain:
        multiplier, added = tl.load(scale), tl.load(bias)
        _all_negative(tile, multiplier, added, row_parts, column_parts, slot_r, slot_c, INFONCE, BLOCK_R, BLOCK_C)
    else:
        SLOTS: tl.constexpr = 2 if INFONCE else 1
        for of_positives in range(2 if HAS_IDS else 1):
            _some(
                tile, scale, bias, audio_keys, text_keys,
                row_parts + of_positives * 2 * slot_r, column_parts + of_positives * SLOTS * slot_c, slot_r, slot_c,
                row, column, of_positives != 0, INFONCE, HAS_IDS, BLOCK_R, BLOCK_C, PIECES,
            )  # fmt: skip
        own = _own_similarities(tile, audio_keys, text_keys, row, column, BLOCK_R, BLOCK_C, PIECES)
        r = tl.arange(0, BLOCK_R)
        if HAS_IDS:
            tl.store(row_parts + 4 * slot_r + r, own)
        else:
            own_column = row + r + offset
            present = (own_column >= column) & (own_column < tl.minimum(column + BLOCK_C, columns))
            tl.store(positive_similarity + row + r, own, mask=present & (row + r < rows))
