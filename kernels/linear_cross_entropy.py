"""Vocabulary cross-entropy in Triton: log-sum-exps by tiles, then gradients of logits by blocks for two products.

The target's logit is a dot product of two gathered rows, and the mean logit a product with the summed vocabulary. Both
are outside the tiles, whose epilogue then only sums exponentials.

Lower bounds of the time on an H100 SXM (990 TFLOP/s dense in 16 bits) for 8,192 tokens, 50,368 words and 512 channels
(0.42 TFLOP per product): 0.43 ms for the loss alone, 1.7 ms with both gradients. These are four products; three would
do if the logits were stored. But recomputing a logit takes 1,024 operations, half the time of moving the 8 bytes that a
stored float32 logit costs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.scores import logsumexp
from slap_fast.kernels.scores.gradient_products import float16_unit, gradients
from slap_fast.kernels.scores.tiles import exp, pieces, score_tile, tile_constants, tile_of_program

# Rows per program of `finish_kernel`: 8,192 tokens then give each multiprocessor several programs.
_FINISH = 8

# Slices of larger tensors may begin at any address.
_VECTORS = ["largest", "total", "loss", "log_total", "softmax_weight"]
_SIZES = ["begin_r", "begin_c", "rows", "columns", "tiles_r", "tiles_c", "ignore_index"]


@triton.jit(do_not_specialize=["rows", "columns", "ignore_index"], do_not_specialize_on_alignment=_VECTORS)
def finish_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    weight_sum: tl.tensor,  # [DEPTH], sum of `weight` over the vocabulary, if SMOOTHED
    target: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    loss: tl.tensor,
    log_total: tl.tensor,
    softmax_weight: tl.tensor,  # factor of the softmax in the gradient
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    ignore_index: tl.tensor,
    label_smoothing: tl.tensor,
    z_loss: tl.tensor,
    SMOOTHED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Loss of each row from its log-sum-exp, its target's logit and, if SMOOTHED, its mean logit."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < rows
    word = tl.load(target + r, mask=inside, other=-1)
    ignored = word == ignore_index
    valid = (word >= 0) & (word < columns)
    depth = tl.arange(0, BLOCK_D)
    hidden += tl.cast(r, tl.int64)[:, None] * stride_h + depth[None, :]  # [BLOCK, BLOCK_D]
    weight += tl.where(valid, word, 0).to(tl.int64)[:, None] * stride_w + depth[None, :]  # [BLOCK, BLOCK_D]
    expected = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    mean = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for begin in tl.static_range(0, DEPTH, BLOCK_D):
        present = depth < DEPTH - begin
        features = tl.load(hidden + begin, mask=inside[:, None] & present[None, :], other=0.0).to(tl.float32)
        words = tl.load(weight + begin, mask=valid[:, None] & present[None, :], other=0.0).to(tl.float32)
        expected = tl.fma(features, words, expected)
        if SMOOTHED:
            all_words = tl.load(weight_sum + begin + depth, mask=present, other=0.0)
            mean = tl.fma(features, tl.broadcast_to(all_words[None, :], features.shape), mean)
    log_sum = tl.log(tl.load(total + r, mask=inside, other=1.0))
    most = tl.load(largest + r, mask=inside, other=0.0)
    # Relative to the maximum, like the log-sum-exp: the difference of two large logits would have lost digits. The
    # maximum was summed in another order: without the minimum, a target above it would give a negative loss.
    expected = tl.minimum(tl.sum(expected, 1) - most, 0.0)
    average = expected
    if SMOOTHED:
        average = tl.sum(mean, 1) / columns - most
    lse = most + log_sum
    token_loss = log_sum - (expected + label_smoothing * (average - expected)) + z_loss * lse * lse
    token_loss = tl.where(valid, token_loss, float("nan"))
    tl.store(loss + r, tl.where(ignored, 0.0, token_loss), mask=inside)
    tl.store(log_total + r, log_sum, mask=inside)
    softmax_weight_r = tl.where(valid, 1.0 + 2.0 * z_loss * lse, float("nan"))
    tl.store(softmax_weight + r, tl.where(ignored, 0.0, softmax_weight_r), mask=inside)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VECTORS)
def gradient_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    target: tl.tensor,
    largest: tl.tensor,
    log_total: tl.tensor,
    softmax_weight: tl.tensor,
    unit: tl.tensor,  # one element, a factor of the gradients
    grad_logits: tl.tensor,  # in whole tiles
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    stride_g: tl.tensor,
    begin_r: tl.tensor,
    begin_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    ignore_index: tl.tensor,
    target_weight: tl.tensor,
    other_weight: tl.tensor,
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
    tile = score_tile(
        hidden, weight, stride_h, stride_w, row, column, rows, columns, DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION
    )
    r = row + tl.arange(0, BLOCK_R)
    inside_r = r < rows
    word = tl.load(target + r, mask=inside_r, other=ignore_index)
    counted = word != ignore_index
    multiplier = tl.load(unit)
    most = tl.load(largest + r, mask=inside_r, other=0.0)[:, None]
    log_sum = tl.load(log_total + r, mask=inside_r, other=0.0)[:, None]
    weight_r = (tl.load(softmax_weight + r, mask=inside_r, other=0.0) * multiplier)[:, None]
    at_target = tl.where(counted, target_weight * multiplier, 0.0)[:, None]
    elsewhere = tl.where(counted, other_weight * multiplier, 0.0)[:, None]
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    grad_logits += (tile_r * BLOCK_R + tl.arange(0, BLOCK_R))[:, None] * stride_g + tile_c * BLOCK_C
    tiles = pieces(tile, PIECES)
    for piece in tl.static_range(PIECES):
        within = piece * WIDTH + tl.arange(0, WIDTH)
        c = column + within
        # Ignored rows have a weight of 0, and columns beyond the last are not read.
        gradient = exp(tiles[piece] - most - log_sum) * weight_r
        gradient += tl.where(word[:, None] == c[None, :], at_target, elsewhere)
        tl.store(grad_logits + within[None, :], gradient.to(grad_logits.dtype.element_ty))


def loss_and_gradients(
    *,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    hidden_needs_grad: bool,
    weight_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed loss, and its gradients in float32, of shape `[0]` if not needed.

    The arguments are those of `ops.linear_cross_entropy.call.LinearCrossEntropyCall`, with last strides of 1.
    """
    rows, columns = hidden.shape[0], weight.shape[0]
    # The features of an ignored token may be NaN, and NaN times 0 is NaN.
    hidden = hidden.masked_fill((target == ignore_index)[:, None], 0.0)
    tile = logsumexp.tile_of(hidden, "caption_tile")
    largest, sum_of_exponentials = logsumexp.of_rows(hidden, weight, tile)
    loss, log_total, softmax_weight = torch.empty(3, rows, dtype=torch.float32, device=hidden.device)
    with launch.on_device_of(hidden):
        if rows:
            smooth = label_smoothing != 0.0
            # A kernel needs some pointer for a tensor that it does not use.
            weight_sum = weight.sum(0, dtype=torch.float32) if smooth else largest
            finish_kernel[(triton.cdiv(rows, _FINISH),)](
                hidden, weight, weight_sum, target, largest, sum_of_exponentials, loss, log_total, softmax_weight,
                hidden.stride(0), weight.stride(0), rows, columns, ignore_index, label_smoothing, z_loss,
                SMOOTHED=smooth, DEPTH=hidden.shape[1], BLOCK=_FINISH,
                BLOCK_D=min(256, triton.next_power_of_2(hidden.shape[1])), enable_fp_fusion=False,
            )  # fmt: skip
        total = loss.sum()
        unit = float16_unit([softmax_weight], hidden.dtype)
        constants = tile_constants(tile, hidden.dtype, hidden.shape[1]) | {"maxnreg": tile.registers}
        smoothed = label_smoothing / columns

        def fill(grad: Tensor, own_rows: tuple[int, int], own_columns: tuple[int, int]) -> None:
            tiles_r, tiles_c = triton.cdiv(grad.shape[0], tile.rows), triton.cdiv(grad.shape[1], tile.columns)
            gradient_kernel[(tiles_r * tiles_c,)](
                hidden, weight, target, largest, log_total, softmax_weight, unit, grad,
                hidden.stride(0), weight.stride(0), grad.stride(0),
                own_rows[0], own_columns[0], own_rows[1], own_columns[1], tiles_r, tiles_c,
                ignore_index, label_smoothing - 1.0 - smoothed, -smoothed, **constants,
            )  # fmt: skip

        grads = gradients(
            hidden, weight, fill, dtype=torch.float32, needs_a=hidden_needs_grad, needs_b=weight_needs_grad,
            factor=None if hidden.dtype != torch.float16 else 1.0 / unit,
        )  # fmt: skip
    return total, *grads
