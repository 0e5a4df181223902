"""The self-distillation loss in Triton: Sinkhorn sweeps, the loss from tiles of both score matrices, then gradients.

A program computes a tile of the student's scores and has the same tile of the teacher's, since the loss needs their
product under the teacher's softmax, and the gradient their difference. Neither softmax is known before all of a row is
seen, but the sum of `target * score` can be carried along like the sum of exponentials, relative to the largest so far:
one pass for the loss, one for the gradient.

The teacher's tile is read where `prototype_scores` holds its scores: five products of the whole then, one of the
teacher's side, the student's twice, and two for its gradients. Where it does not, because they exceed a budget or the
potential came from a larger batch, a program computes both, in tiles of half the width, and each sweep the teacher's
again: eleven products.

The floor on an H100 SXM (990 TFLOP/s dense in 16 bits, 3.0 TB/s) for 32,768 tokens, 32,768 prototypes and 256 channels,
0.55 TFLOP a product and 2 GiB of scores: 0.7 ms to write them in the first sweep, 1.4 ms for each other, 0.7 ms for the
loss, 1.8 ms for gradients. At 256 channels exponentials, of which a multiprocessor does 16 a cycle, add up to as much
as a product: 0.28 ms for one a score. Tiles of 128 x 128 read 8.6 GB of features from the L2 cache a product, 1.4 ms at
6 TB/s: that, and not arithmetic, is what the loss and the gradients will wait for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.prototype_cross_entropy import stored_scores as prototype_scores
from slap_fast.kernels.scores import logsumexp as score_logsumexp
from slap_fast.kernels.scores import parts as score_parts
from slap_fast.kernels.scores.blocks import block_shape, blocks
from slap_fast.kernels.scores.parts import fold, nothing, running, store_rows
from slap_fast.kernels.scores.products import float16_unit, gradients
from slap_fast.kernels.scores.tiles import (
    ScoreTile,
    exp,
    pair_tile_for,
    pieces,
    scores,
    tile_constants,
    tile_of_program,
)


@triton.jit(do_not_specialize=["begin_r", "begin_c", "rows", "columns", "tiles_r", "tiles_c", "height"])
def statistics_kernel(
    student: tl.tensor,
    teacher: tl.tensor,
    student_prototypes: tl.tensor,
    teacher_prototypes: tl.tensor,
    shift: tl.tensor,  # [C] in whole tiles, of `column_shift`
    scales: tl.tensor,  # [2]: of the student, of the teacher
    parts: tl.tensor,  # [2, 3, tiles_c, height]: of the teacher, of the student
    stride_s: tl.tensor,
    stride_t: tl.tensor,
    stride_sp: tl.tensor,
    stride_tp: tl.tensor,
    begin_r: tl.tensor,
    begin_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    height: tl.tensor,
    STORED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c)
    row = begin_r + tile_r * BLOCK_R
    # Blocks begin at whole tiles, which the compiler cannot know, and without which it loads 2 bytes at a time.
    column = tl.multiple_of(begin_c + tile_c * BLOCK_C, BLOCK_C)
    if STORED:
        teacher += tl.cast(row, tl.int64) * stride_t + column + (tl.arange(0, BLOCK_R) * stride_t)[:, None]
    else:
        theirs = scores(
            teacher, teacher_prototypes, stride_t, stride_tp, row, column, rows, columns,
            DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        their_pieces = pieces(theirs, PIECES)
    ours = scores(
        student, student_prototypes, stride_s, stride_sp, row, column, rows, columns,
        DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
    )  # fmt: skip
    our_pieces = pieces(ours, PIECES)
    student_scale = tl.load(scales)
    our_scale = student_scale * 1.4426950408889634
    their_scale = tl.load(scales + 1)
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    # Rows beyond the last are anything: their sums go nowhere.
    _, teacher_sum, product = nothing(BLOCK_R)
    student_sum = product
    # Not -inf, of which a difference would be NaN.
    student_largest = tl.full([BLOCK_R], -1e30, tl.float32)
    teacher_largest = student_largest
    for piece in tl.static_range(PIECES):
        within = piece * WIDTH + tl.arange(0, WIDTH)
        # Less than any score beyond the last column, and finite: it will be multiplied by 0.
        similarity = tl.where((column + within < columns)[None, :], our_pieces[piece], -1e30)
        largest = tl.maximum(student_largest, tl.max(similarity, 1))
        decay = tl.exp2((student_largest - largest) * our_scale)
        student_sum = student_sum * decay + tl.sum(tl.exp2((similarity - largest[:, None]) * our_scale), 1)
        student_largest = largest
        theirs = tl.load(teacher + within[None, :]).to(tl.float32) if STORED else their_pieces[piece]
        shift_c = tl.load(shift + column + within)[None, :]
        logits = tl.fma(theirs, their_scale, tl.broadcast_to(shift_c, theirs.shape))
        largest = tl.maximum(teacher_largest, tl.max(logits, 1))
        decay = exp(teacher_largest - largest)
        weights = exp(logits - largest[:, None])
        teacher_sum = teacher_sum * decay + tl.sum(weights, 1)
        product = product * decay + tl.sum(weights * similarity, 1)
        teacher_largest = largest
    student_largest *= student_scale
    product *= student_scale
    r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    slot = tiles_c * height
    parts += tile_c * height
    store_rows(parts, r, slot, height, (teacher_largest, teacher_sum, product), True)
    store_rows(parts + 3 * slot, r, slot, height, (student_largest, student_sum, student_sum), False)


# Rows of larger tensors begin anywhere.
_VECTORS = ["student_largest", "student_sum", "teacher_largest", "teacher_sum", "token_weight"]


@triton.jit(
    do_not_specialize=["begin_r", "begin_c", "rows", "columns", "tiles_r", "tiles_c"],
    do_not_specialize_on_alignment=_VECTORS,
)
def gradient_kernel(
    student: tl.tensor,
    teacher: tl.tensor,
    student_prototypes: tl.tensor,
    teacher_prototypes: tl.tensor,
    shift: tl.tensor,
    scales: tl.tensor,
    student_largest: tl.tensor,
    student_sum: tl.tensor,
    teacher_largest: tl.tensor,
    teacher_sum: tl.tensor,
    token_weight: tl.tensor,
    grad_scores: tl.tensor,  # in whole tiles
    stride_s: tl.tensor,
    stride_t: tl.tensor,
    stride_sp: tl.tensor,
    stride_tp: tl.tensor,
    stride_g: tl.tensor,
    begin_r: tl.tensor,
    begin_c: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    tiles_r: tl.tensor,
    tiles_c: tl.tensor,
    STORED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    tile_r, tile_c = tile_of_program(tiles_r, tiles_c)
    row = begin_r + tile_r * BLOCK_R
    # Blocks begin at whole tiles, which the compiler cannot know, and without which it loads 2 bytes at a time.
    column = tl.multiple_of(begin_c + tile_c * BLOCK_C, BLOCK_C)
    if STORED:
        teacher += tl.cast(row, tl.int64) * stride_t + column + (tl.arange(0, BLOCK_R) * stride_t)[:, None]
    else:
        theirs = scores(
            teacher, teacher_prototypes, stride_t, stride_tp, row, column, rows, columns,
            DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        their_pieces = pieces(theirs, PIECES)
    ours = scores(
        student, student_prototypes, stride_s, stride_sp, row, column, rows, columns,
        DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
    )  # fmt: skip
    r = row + tl.arange(0, BLOCK_R)
    inside_r = r < rows
    our_scale = tl.load(scales)
    their_scale = tl.load(scales + 1)
    # Rows beyond the last have a weight of 0; they and columns beyond the last are never read.
    weight = tl.load(token_weight + r, mask=inside_r, other=0.0)
    our_most = tl.load(student_largest + r, mask=inside_r, other=0.0)[:, None]
    their_most = tl.load(teacher_largest + r, mask=inside_r, other=0.0)[:, None]
    our_share = (weight / tl.load(student_sum + r, mask=inside_r, other=1.0))[:, None]
    their_share = (weight / tl.load(teacher_sum + r, mask=inside_r, other=1.0))[:, None]
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    grad_scores += (tile_r * BLOCK_R + tl.arange(0, BLOCK_R))[:, None] * stride_g + tile_c * BLOCK_C
    our_pieces = pieces(ours, PIECES)
    for piece in tl.static_range(PIECES):
        within = piece * WIDTH + tl.arange(0, WIDTH)
        theirs = tl.load(teacher + within[None, :]).to(tl.float32) if STORED else their_pieces[piece]
        shift_c = tl.load(shift + column + within)[None, :]
        their_logits = tl.fma(theirs, their_scale, tl.broadcast_to(shift_c, theirs.shape))
        gradient = exp(our_pieces[piece] * our_scale - our_most) * our_share
        gradient -= exp(their_logits - their_most) * their_share
        tl.store(grad_scores + within[None, :], gradient.to(grad_scores.dtype.element_ty))


def sinkhorn_sweep(
    teacher: Tensor,
    prototypes: Tensor,
    temperature: Tensor,
    *,
    potential: Tensor | None = None,
    store_to: Tensor | None = None,
) -> Tensor:
    """`[K]`: `logsumexp_t(logits - logsumexp_k(logits - potential))`, without a potential `logsumexp_t(logits)`.

    Args:
        teacher: `[T, D]`, last stride 1.
        prototypes: `[K, D]`, last stride 1.
        temperature: scalar tensor; `logits = teacher @ prototypes.T / temperature`.
        potential: `[K]`.
        store_to: memory from `stored_scores.new_scores` for `teacher @ prototypes.T`; without a potential only.
    """
    scale, tile = 1.0 / temperature, score_logsumexp.tile_of(teacher, "prototype_tile")
    row_shift = None
    if potential is not None:
        of_tokens = score_logsumexp.of_rows(teacher, prototypes, tile, scale=scale, column_shift=potential)
        row_shift = of_tokens[0] + of_tokens[1].log()
    largest, total = score_logsumexp.of_columns(
        teacher, prototypes, tile, scale=scale, row_shift=row_shift, stored=store_to
    )
    return largest + total.log()


def _statistics(
    inputs: tuple[Tensor, ...], strides: tuple[int, ...], tile: ScoreTile, constants: dict[str, object]
) -> Tensor:
    """`[2, 3, T]` of the teacher and of the student: largest logit, sum of exponentials, and of `weight * score`."""
    rows, columns, device = inputs[0].shape[0], inputs[2].shape[0], inputs[0].device
    sums = running(2, 3, rows, device)
    block_r, block_c = block_shape(rows, columns, score_parts.AREA)
    most_r, most_c = min(rows, block_r), min(columns, block_c)
    parts = torch.empty(6 * triton.cdiv(most_c, tile.columns) * most_r, dtype=torch.float32, device=device)
    for begin_r, end_r in blocks(rows, block_r):
        for begin_c, end_c in blocks(columns, block_c):
            tiles_r, tiles_c = triton.cdiv(end_r - begin_r, tile.rows), triton.cdiv(end_c - begin_c, tile.columns)
            statistics_kernel[(tiles_r * tiles_c,)](
                *inputs, parts, *strides, begin_r, begin_c, end_r, end_c, tiles_r, tiles_c, end_r - begin_r, **constants
            )
            fold(parts, sums, tiles_c, begin_r, end_r - begin_r, weighted=True)
    return sums


def loss_and_gradients(
    *,
    student: Tensor,
    teacher: Tensor,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    potential: Tensor | None,
    token_weight: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    student_needs_grad: bool,
    prototypes_needs_grad: bool,
    scores: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted sum and its gradients in float32, of shape `[0]` where not needed; last strides are 1.

    The teacher's scores are those in `scores`, if given, which `sinkhorn_sweep` stored.
    """
    scales = 1.0 / torch.stack([student_temperature, teacher_temperature])
    matrices = student, teacher if scores is None else scores, student_prototypes, teacher_prototypes
    strides = tuple(matrix.stride(0) for matrix in matrices)
    inputs = *matrices, prototype_scores.column_shift(student_prototypes, potential, 1.0), scales
    if scores is None:
        tile = pair_tile_for(student.dtype, launch.capability(student.device))
    else:
        tile = score_logsumexp.tile_of(student, "prototype_tile")
    constants = tile_constants(tile, student.dtype, student.shape[1])
    constants |= {"STORED": scores is not None, "maxnreg": tile.registers}
    with launch.on_device_of(student):
        sums = _statistics(inputs, strides, tile, constants)
        (teacher_largest, teacher_sum, product), (student_largest, student_sum, _) = sums
        losses = student_largest + student_sum.log() - product / teacher_sum
        total = (losses * token_weight).sum()
        unit = float16_unit([token_weight], student.dtype)
        weight = token_weight * unit

        def fill(grad: Tensor, own_rows: tuple[int, int], own_columns: tuple[int, int]) -> None:
            tiles_r, tiles_c = triton.cdiv(grad.shape[0], tile.rows), triton.cdiv(grad.shape[1], tile.columns)
            gradient_kernel[(tiles_r * tiles_c,)](
                *inputs, student_largest, student_sum, teacher_largest, teacher_sum, weight, grad,
                *strides, grad.stride(0), own_rows[0], own_columns[0], own_rows[1], own_columns[1], tiles_r, tiles_c,
                **constants,
            )  # fmt: skip

        grads = gradients(
            student, student_prototypes, fill, dtype=torch.float32, needs_a=student_needs_grad,
            needs_b=prototypes_needs_grad, factor=scales[0] / unit,
        )  # fmt: skip
    return total, *grads
