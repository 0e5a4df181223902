"""Gradient of the contrastive losses by the logits, tile by tile: the rest is two matrix products."""

import triton
import triton.language as tl

from slap_fast.kernels.contrastive_statistics import is_positive
from slap_fast.kernels.score_tiles import exp, logits_of, pieces, scores, tile_of_program

# Rows of larger tensors begin anywhere.
_VECTORS = ["grad_row", "grad_column", "grad_positive", "row_largest", "row_loss", "column_largest", "column_loss"]
_SIZES = ["stride_p", "begin_r", "begin_c", "rows", "columns", "offset", "tiles_r", "tiles_c"]


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VECTORS)
def gradient_kernel(
    audio: tl.tensor,
    text: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    audio_keys: tl.tensor,
    text_keys: tl.tensor,
    unit: tl.tensor,  # one element: by what the gradients of the rows and columns below were multiplied
    grad_row: tl.tensor,  # [R]
    grad_column: tl.tensor,  # [C], infonce
    grad_positive: tl.tensor,  # [R], infonce: to each of the row's positives
    row_largest: tl.tensor,
    row_loss: tl.tensor,
    column_largest: tl.tensor,
    column_loss: tl.tensor,
    grad_logits: tl.tensor,  # in whole tiles
    parts: tl.tensor,  # [1 or 2, programs]: of the gradients of scale and bias
    stride_a: tl.tensor,
    stride_t: tl.tensor,
    stride_g: tl.tensor,
    stride_p: tl.tensor,
    begin_r: tl.tensor,
    begin_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    offset: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
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
    inside_r = r < rows
    multiplier = tl.load(scale)
    added = 0.0
    if HAS_BIAS:
        added = tl.load(bias)
    weight_r = tl.load(grad_row + r, mask=inside_r, other=0.0)[:, None]
    if INFONCE:
        largest_r = tl.load(row_largest + r, mask=inside_r, other=0.0)[:, None]
        loss_r = tl.load(row_loss + r, mask=inside_r, other=0.0)[:, None]
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    grad_logits += (tile_r * BLOCK_R + tl.arange(0, BLOCK_R))[:, None] * stride_g + tile_c * BLOCK_C
    sum_scale = tl.zeros([BLOCK_R], tl.float32)
    sum_bias = tl.zeros([BLOCK_R], tl.float32)
    similarities = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        similarity = similarities[piece]
        first = column + piece * WIDTH
        c = first + tl.arange(0, WIDTH)
        inside_c = c < columns
        shift = tl.where(inside_c, added, float("-inf"))
        logits = logits_of(similarity, multiplier, shift, inside_r)
        positive, found = is_positive(audio_keys, text_keys, row, first, rows, columns, offset, HAS_IDS, BLOCK_R, WIDTH)
        if INFONCE:
            largest_c = tl.load(column_largest + c, mask=inside_c, other=0.0)[None, :]
            loss_c = tl.load(column_loss + c, mask=inside_c, other=0.0)[None, :]
            weight_c = tl.load(grad_column + c, mask=inside_c, other=0.0)[None, :]
            # Not exp(logits - lse): where logits are large, a rounded lse has lost digits that matter.
            gradient = exp(logits - largest_r - loss_r) * weight_r
            gradient += exp(logits - largest_c - loss_c) * weight_c
            if found:
                weight_p = tl.load(grad_positive + r, mask=inside_r, other=0.0)[:, None]
                gradient += tl.where(positive, weight_p, 0.0)
        else:
            sign = tl.full(logits.shape, 1.0, tl.float32)
            if found:
                sign = tl.where(positive, -1.0, 1.0)
            gradient = sign / (1.0 + exp(-sign * logits)) * weight_r
        sum_scale += tl.sum(gradient * similarity, 1)
        if HAS_BIAS:
            sum_bias += tl.sum(gradient, 1)
        target = grad_logits + (piece * WIDTH + tl.arange(0, WIDTH))[None, :]
        tl.store(target, gradient.to(grad_logits.dtype.element_ty))

    inverse = 1.0 / tl.load(unit)
    parts += tl.program_id(0)
    tl.store(parts, tl.sum(sum_scale, 0) * inverse)
    if HAS_BIAS:
        tl.store(parts + stride_p, tl.sum(sum_bias, 0) * inverse)
