"""Stored scores of the teacher: memory layout, and Sinkhorn sweeps that read them.

The first sweep stores the scores for the other sweeps, the loss and its gradients. For 32,768 tokens, 32,768 prototypes
and 256 channels on an H200, the product takes 0.7 ms at best, and 1.4 ms if tiles of 128 x 128 wait for L2; reading its
2 GiB in 16 bits takes 0.5 ms.

Scores of 16-bit features are stored in float16: its 11 bits hold a cosine (at most 1) to 2**-12, 8 times as precise as
the bfloat16 output of a product. Above 65,504, which no cosine reaches, they are infinite and the loss is NaN. Scores
of float32 features are stored in float32.

A sweep reads the scores twice, by rows and by columns. One pass would have to hold 32,768 columns twice in float32
(exponentials of a row until its sum is known, and sums over rows): all 256 KiB of a multiprocessor's registers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.scores.tiles import finite_or_zero

# A thread reads 16 bytes of a row at a time, a warp 32 such vectors.
_LANES = 32
_ROWS = 16
# Rows that a program of the pass by columns sums: it writes a thousandth of what it reads.
_CHUNK = 512
# The number of stored rows and of stored columns is a multiple of this: whole tiles, and 32 vectors.
_WHOLE = 256


def whole(size: int) -> int:
    """Rows or columns stored for `size` of them."""
    return -(-size // _WHOLE) * _WHOLE


def new_scores(teacher: Tensor, prototypes: Tensor) -> Tensor:
    """`[T, K]`, both rounded up to whole tiles; float32 for float32, else float16.

    Uninitialized except for columns beyond the last: these are read, and are 0.
    """
    dtype = torch.float32 if teacher.dtype == torch.float32 else torch.float16
    scores = teacher.new_empty(whole(teacher.shape[0]), whole(prototypes.shape[0]), dtype=dtype)
    scores[:, prototypes.shape[0] :].zero_()
    return scores


def column_shift(prototypes: Tensor, potential: Tensor | None, unit: float) -> Tensor:
    """`[K]` in whole tiles: `-unit * potential`, and -inf beyond the last prototype."""
    columns = prototypes.shape[0]
    shift = torch.full((whole(columns),), -math.inf, dtype=torch.float32, device=prototypes.device)
    if potential is None:
        shift[:columns] = 0.0
    else:
        torch.mul(potential, -unit, out=shift[:columns])
    return shift


@triton.jit(do_not_specialize=["rows"])
def rows_kernel(
    scores: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    lse: tl.tensor,
    pitch: tl.tensor,
    rows: tl.tensor,
    BLOCK_R: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
) -> None:
    """Log-sum-exp of each row in base 2: `log2(sum(exp(scale * scores) * 2 ** shift))` over columns."""
    row = tl.program_id(0) * BLOCK_R
    within = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]  # [LANES, VECTOR]
    scores += tl.cast(row, tl.int64) * pitch + (tl.arange(0, BLOCK_R) * pitch)[:, None, None] + within[None, :, :]
    multiplier = tl.load(scale) * 1.4426950408889634
    # Each lane keeps its own sums until the end: no shuffles in the loop.
    largest = tl.full([BLOCK_R, LANES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R, LANES], tl.float32)
    for begin in range(0, pitch, LANES * VECTOR):
        similarity = tl.load(scores + begin).to(tl.float32)  # [BLOCK_R, LANES, VECTOR]
        shift_c = tl.broadcast_to(tl.load(shift + begin + within)[None, :, :], similarity.shape)
        logits = tl.fma(similarity, multiplier, shift_c)
        new_largest = tl.maximum(largest, tl.max(logits, 2))
        reference = finite_or_zero(new_largest)
        total = total * tl.exp2(largest - reference) + tl.sum(tl.exp2(logits - reference[:, :, None]), 2)
        largest = new_largest
    most = tl.max(largest, 1)
    total = tl.sum(total * tl.exp2(largest - most[:, None]), 1)
    r = row + tl.arange(0, BLOCK_R)
    tl.store(lse + r, most + tl.log2(total), mask=r < rows)


@triton.jit(do_not_specialize=["rows", "columns"])
def columns_kernel(
    scores: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    lse: tl.tensor,
    parts: tl.tensor,  # [chunks, columns]
    pitch: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Sums over a chunk of rows of the probabilities that `rows_kernel` normalizes."""
    first = tl.program_id(1) * CHUNK
    r = tl.arange(0, BLOCK_R)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    multiplier = tl.load(scale) * 1.4426950408889634
    shift_c = tl.load(shift + c)
    scores += tl.cast(first, tl.int64) * pitch + (r * pitch)[:, None] + c[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for begin in range(0, tl.minimum(CHUNK, rows - first), BLOCK_R):
        row = first + begin + r
        row_lse = tl.load(lse + row, mask=row < rows, other=float("inf"))
        similarity = tl.load(scores).to(tl.float32)  # [BLOCK_R, BLOCK_C]
        logits = tl.fma(similarity, multiplier, tl.broadcast_to(shift_c[None, :], similarity.shape))
        total += tl.exp2(logits - row_lse[:, None])
        scores += BLOCK_R * pitch
    tl.store(parts + tl.program_id(1) * tl.cast(columns, tl.int64) + c, tl.sum(total, 0), mask=c < columns)


def sweep(scores: Tensor, tokens: int, scale: Tensor, potential: Tensor) -> Tensor:
    """`[K]`: `logsumexp_t(logits - logsumexp_k(logits - potential))` with `logits = scale * scores`.

    Args:
        scores: from `new_scores`, filled by the first sweep.
        tokens: valid rows of `scores`.
        scale: one float32 element.
        potential: `[K]` float32, the result of the sweep before over at least these tokens. That bounds the sums: a
            prototype's largest probability is at least 1 / (all tokens * all prototypes), so they need no maximum.
    """
    columns, pitch = potential.shape[0], scores.stride(0)
    vector = 16 // scores.element_size()
    shift = column_shift(potential, potential, 1.0 / math.log(2.0))
    chunks = triton.cdiv(tokens, _CHUNK)
    lse = potential.new_empty(tokens)
    parts = potential.new_empty(chunks, columns)
    if tokens:
        with launch.on_device_of(scores):
            rows_kernel[(triton.cdiv(tokens, _ROWS),)](
                scores, scale, shift, lse, pitch, tokens,
                BLOCK_R=_ROWS, LANES=_LANES, VECTOR=vector, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            columns_kernel[(pitch // (_LANES * vector), chunks)](
                scores, scale, shift, lse, parts, pitch, tokens, columns,
                CHUNK=_CHUNK, BLOCK_R=_ROWS, BLOCK_C=_LANES * vector, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return potential + parts.sum(0).log()
