"""Prototype loss in Triton: launchers of the Sinkhorn sweeps, of the loss and of its gradients.

The loss and its gradients read the teacher's tiles from stored scores (stored_scores.py) if there are any. That makes
five products: the teacher's scores once, the student's twice, and two for the gradients. Without stored scores, because
they exceed a budget or the potential came from a larger batch, a program computes both tiles, at half the width, and
each sweep recomputes the teacher's scores: eleven products.

Lower bounds of the time on an H100 SXM (990 TFLOP/s dense in 16 bits, 3.0 TB/s) for 32,768 tokens, 32,768 prototypes
and 256 channels (0.55 TFLOP per product, 2 GiB of scores): 0.7 ms for the first sweep, which stores them, 1.4 ms for
each other sweep, 0.7 ms for the loss, 1.8 ms for the gradients. At 256 channels the exponentials, of which a
multiprocessor does 16 per cycle, cost as much as a product: 0.28 ms for one per score. Tiles of 128 x 128 read 8.6 GB
of features from L2 per product, 1.4 ms at 6 TB/s: this, and not arithmetic, bounds the loss and the gradients.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.prototype_cross_entropy.gradient import gradient_kernel
from slap_fast.kernels.prototype_cross_entropy.statistics import statistics_kernel
from slap_fast.kernels.prototype_cross_entropy.stored_scores import column_shift
from slap_fast.kernels.scores import logsumexp, partial_sums
from slap_fast.kernels.scores.blocks import block_shape, blocks
from slap_fast.kernels.scores.gradient_products import float16_unit, gradients
from slap_fast.kernels.scores.partial_sums import fold, running
from slap_fast.kernels.scores.tiles import TileShape, pair_tile_shape, tile_constants


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
    scale, tile = 1.0 / temperature, logsumexp.tile_of(teacher, "prototype_tile")
    row_shift = None
    if potential is not None:
        of_tokens = logsumexp.of_rows(teacher, prototypes, tile, scale=scale, column_shift=potential)
        row_shift = of_tokens[0] + of_tokens[1].log()
    largest, total = logsumexp.of_columns(teacher, prototypes, tile, scale=scale, row_shift=row_shift, stored=store_to)
    return largest + total.log()


def _statistics(
    inputs: tuple[Tensor, ...], strides: tuple[int, ...], tile: TileShape, constants: dict[str, object]
) -> Tensor:
    """`[2, 3, T]`, teacher and student: maximum logit, sum of exponentials, sum of `exponential * score`."""
    rows, columns, device = inputs[0].shape[0], inputs[2].shape[0], inputs[0].device
    sums = running(2, 3, rows, device)
    block_r, block_c = block_shape(rows, columns, partial_sums.AREA)
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
    """The weighted sum of the tokens' losses, and its gradients in float32, of shape `[0]` if not needed.

    The arguments are those of `ops.prototype_cross_entropy.call.PrototypeCall`, with last strides of 1.
    """
    scales = 1.0 / torch.stack([student_temperature, teacher_temperature])
    matrices = student, teacher if scores is None else scores, student_prototypes, teacher_prototypes
    strides = tuple(matrix.stride(0) for matrix in matrices)
    inputs = *matrices, column_shift(student_prototypes, potential, 1.0), scales
    if scores is None:
        tile = pair_tile_shape(student.dtype, launch.capability(student.device))
    else:
        tile = logsumexp.tile_of(student, "prototype_tile")
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
