"""Gradients by the student's scores, tile by tile: the weighted difference of the two softmaxes."""

import triton
import triton.language as tl

from slap_fast.kernels.scores.tiles import exp, pieces, score_tile, tile_of_program

# Slices of larger tensors may begin at any address.
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
    # Blocks begin at whole tiles. Without this hint the compiler loads 2 bytes at a time.
    column = tl.multiple_of(begin_c + tile_c * BLOCK_C, BLOCK_C)
    if STORED:
        teacher += tl.cast(row, tl.int64) * stride_t + column + (tl.arange(0, BLOCK_R) * stride_t)[:, None]
    else:
        theirs = score_tile(
            teacher, teacher_prototypes, stride_t, stride_tp, row, column, rows, columns,
            DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        their_pieces = pieces(theirs, PIECES)
    ours = score_tile(
        student, student_prototypes, stride_s, stride_sp, row, column, rows, columns,
        DEPTH, BLOCK_R, BLOCK_C, BLOCK_D, PRECISION,
    )  # fmt: skip
    r = row + tl.arange(0, BLOCK_R)
    inside_r = r < rows
    our_scale = tl.load(scales)
    their_scale = tl.load(scales + 1)
    # Rows beyond the last have a weight of 0; neither they nor columns beyond the last are read.
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
