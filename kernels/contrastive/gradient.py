"""Gradients of the contrastive losses by the logits, tile by tile."""

import triton
import triton.language as tl

from slap_fast.kernels.contrastive.positives import is_plain, positives_and_inside
from slap_fast.kernels.scores.tiles import exp, logits_of, pieces, stored_or_score_tile, tile_of_program


@triton.jit
def _softmax(logits: tl.tensor, largest: tl.tensor, log_total: tl.tensor) -> tl.tensor:
    """`exp(logits - largest - log_total)`, given `log_total * log2(e)`.

    Not `exp(logits - lse)`: for large logits the rounded lse has too few digits.
    """
    return tl.exp2(tl.fma(logits - largest, 1.4426950408889634, -log_total))


@triton.jit
def _all_negative(
    tile: tl.tensor,
    multiplier: tl.tensor,
    added: tl.tensor,
    rows_of: tl.tensor,
    columns_of: tl.tensor,
    pitch_r: tl.tensor,
    pitch_c: tl.tensor,
    grad_logits: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIECES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Store the gradients of a tile without positives; return its sums for the gradients of scale and bias."""
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    rows_of += tl.arange(0, BLOCK_R)
    weight_r = tl.load(rows_of)[:, None]
    if INFONCE:
        largest_r = tl.load(rows_of + pitch_r)[:, None]
        loss_r = tl.load(rows_of + 2 * pitch_r)[:, None]
    sum_scale = tl.zeros([BLOCK_R, WIDTH], tl.float32)
    sum_bias = tl.zeros([BLOCK_R], tl.float32)
    similarities = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        similarity = similarities[piece]
        within = piece * WIDTH + tl.arange(0, WIDTH)
        logits = tl.fma(similarity, multiplier, added)
        if INFONCE:
            weight_c = tl.load(columns_of + within)[None, :]
            largest_c = tl.load(columns_of + pitch_c + within)[None, :]
            loss_c = tl.load(columns_of + 2 * pitch_c + within)[None, :]
            gradient = _softmax(logits, largest_r, loss_r) * weight_r
            gradient = tl.fma(_softmax(logits, largest_c, loss_c), tl.broadcast_to(weight_c, logits.shape), gradient)
        else:
            gradient = weight_r / (1.0 + exp(-logits))
        sum_scale = tl.fma(gradient, similarity, sum_scale)
        if HAS_BIAS:
            sum_bias += tl.sum(gradient, 1)
        tl.store(grad_logits + within[None, :], gradient.to(grad_logits.dtype.element_ty))
    return tl.sum(tl.sum(sum_scale, 1), 0), tl.sum(sum_bias, 0)


@triton.jit
def _any_tile(
    tile: tl.tensor,
    multiplier: tl.tensor,
    added: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    rows_of: tl.tensor,
    columns_of: tl.tensor,
    pitch_r: tl.tensor,
    pitch_c: tl.tensor,
    grad_logits: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIECES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The same for any tile."""
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    r = row + tl.arange(0, BLOCK_R)
    inside_r = r < rows
    rows_of += tl.arange(0, BLOCK_R)
    weight_r = tl.load(rows_of, mask=inside_r, other=0.0)[:, None]
    if INFONCE:
        largest_r = tl.load(rows_of + pitch_r, mask=inside_r, other=0.0)[:, None]
        loss_r = tl.load(rows_of + 2 * pitch_r, mask=inside_r, other=0.0)[:, None]
        weight_p = tl.load(rows_of + 3 * pitch_r, mask=inside_r, other=0.0)[:, None]
    sum_scale = tl.zeros([BLOCK_R, WIDTH], tl.float32)
    sum_bias = tl.zeros([BLOCK_R], tl.float32)
    similarities = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        similarity = similarities[piece]
        within = piece * WIDTH + tl.arange(0, WIDTH)
        c = column + within
        positive, _, inside_c = positives_and_inside(audio_keys, text_keys, r, c)
        shift = tl.where(inside_c, added, float("-inf"))
        if INFONCE:
            weight_c = tl.load(columns_of + within, mask=inside_c, other=0.0)[None, :]
            largest_c = tl.load(columns_of + pitch_c + within, mask=inside_c, other=0.0)[None, :]
            loss_c = tl.load(columns_of + 2 * pitch_c + within, mask=inside_c, other=0.0)[None, :]
            logits = logits_of(similarity, multiplier, shift, inside_r)
            gradient = _softmax(logits, largest_r, loss_r) * weight_r
            gradient = tl.fma(_softmax(logits, largest_c, loss_c), tl.broadcast_to(weight_c, logits.shape), gradient)
            gradient += tl.where(positive, weight_p, 0.0)
        else:
            logits = tl.fma(similarity, multiplier, tl.broadcast_to(shift[None, :], similarity.shape))
            gradient = weight_r / (1.0 + exp(tl.where(positive, logits, -logits)))
            gradient = tl.where(positive, -gradient, gradient)
        sum_scale = tl.fma(gradient, similarity, sum_scale)
        if HAS_BIAS:
            sum_bias += tl.sum(gradient, 1)
        tl.store(grad_logits + within[None, :], gradient.to(grad_logits.dtype.element_ty))
    return tl.sum(tl.sum(sum_scale, 1), 0), tl.sum(sum_bias, 0)


@triton.jit(
    do_not_specialize=["stride_p", "first_r", "first_c", "rows", "columns", "offset", "tiles_r", "tiles_c"],
    do_not_specialize_on_alignment=["parts"],
)
def gradient_kernel(
    audio: tl.tensor,
    text: tl.tensor,
    stored: tl.tensor,  # similarities of the block, if STORED
    scale: tl.tensor,
    bias: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    flags: tl.tensor,
    unit: tl.tensor,  # one element, a factor of the weights below
    rows_of: tl.tensor,  # [1 or 4, pitch_r]: weight of the row, its largest logit, loss * log2(e), weight of a positive
    columns_of: tl.tensor,  # [3, pitch_c]: weight of the column, its largest logit, loss * log2(e)
    grad_logits: tl.tensor,  # in whole tiles
    parts: tl.tensor,  # [1 or 2, programs]: sums for the gradients of scale and bias
    stride_a: tl.tensor,
    stride_t: tl.tensor,
    stride_s: tl.tensor,
    stride_g: tl.tensor,
    stride_p: tl.tensor,
    pitch_r: tl.tensor,
    pitch_c: tl.tensor,
    first_r: tl.tensor,  # tiles before the block
    first_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    INFONCE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
    multiplier, added = tl.load(scale), tl.load(bias)
    rows_of += row
    columns_of += column
    grad_logits += (tile_r * BLOCK_R + tl.arange(0, BLOCK_R))[:, None] * stride_g + tile_c * BLOCK_C
    plain = is_plain(flags, first_r + tile_r, first_c + tile_c, rows, columns, offset, HAS_IDS, BLOCK_R, BLOCK_C)
    if plain:
        sum_scale, sum_bias = _all_negative(
            tile, multiplier, added, rows_of, columns_of, pitch_r, pitch_c, grad_logits,
            INFONCE, HAS_BIAS, BLOCK_R, BLOCK_C, PIECES,
        )  # fmt: skip
    else:
        sum_scale, sum_bias = _any_tile(
            tile, multiplier, added, audio_keys, text_keys, rows_of, columns_of, pitch_r, pitch_c, grad_logits,
            row, column, rows, columns, INFONCE, HAS_BIAS, BLOCK_R, BLOCK_C, PIECES,
        )  # fmt: skip
    inverse = 1.0 / tl.load(unit)
    parts += tl.program_id(0)
    tl.store(parts, sum_scale * inverse)
    if HAS_BIAS:
        tl.store(parts + stride_p, sum_bias * inverse)
