"""Row statistics of the student's and the teacher's scores, tile by tile: maxima, sums, and the cross term of the loss.

A program has the same tile of both score matrices. Neither softmax is known before a whole row is seen, but the sum of
`target * score` can be accumulated like the sum of exponentials, relative to the maximum so far: one pass.
"""

import triton
import triton.language as tl

from slap_fast.kernels.scores.partial_sums import nothing, store_rows
from slap_fast.kernels.scores.tiles import exp, pieces, score_tile, tile_of_program


@triton.jit(do_not_specialize=["begin_r", "begin_c", "rows", "columns", "tiles_r", "tiles_c", "height"])
def statistics_kernel(
    student: tl.tensor,
    teacher: tl.tensor,
    student_prototypes: tl.tensor,
    teacher_prototypes: tl.tensor,
    shift: tl.tensor,  # [C] in whole tiles, from `column_shift`
    scales: tl.tensor,  # [2]: student, teacher
    parts: tl.tensor,  # [2, 3, tiles_c, height]: teacher, student
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
    our_pieces = pieces(ours, PIECES)
    student_scale = tl.load(scales)
    our_scale = student_scale * 1.4426950408889634
    their_scale = tl.load(scales + 1)
    WIDTH: tl.constexpr = BLOCK_C // PIECES
    # Rows beyond the last may hold any value: their sums are not used.
    _, teacher_sum, product = nothing(BLOCK_R)
    student_sum = product
    # Not -inf: the difference of two would be NaN.
    student_largest = tl.full([BLOCK_R], -1e30, tl.float32)
    teacher_largest = student_largest
    for piece in tl.static_range(PIECES):
        within = piece * WIDTH + tl.arange(0, WIDTH)
        # Beyond the last column, a value below any score, and finite: it is multiplied by 0.
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
