"""The teacher's scores over prototypes, stored once for all Sinkhorn rounds, the loss and its gradients: two passes.

A product of 32,768 tokens with 32,768 prototypes of 256 channels takes an H200 0.7 ms at best, and 1.4 ms where tiles
of 128 x 128 wait for the L2 cache; to read what it gave, 2 GiB in 16 bits, takes 0.5 ms. Scores of 16-bit features are
stored in float16, whose 11 bits hold a cosine, of at most 1, to 2**-12 or better: eight times as precise as a product
in bfloat16 returns it, and as precise as one in float16. Beyond 65,504, which no cosine is, they are infinite and the
loss is NaN. Those of float32 features are stored in float32.

A round passes over the scores twice, by rows and by columns. One pass would have to hold 32,768 columns in float32
twice, as exponentials of a row that wait for its sum and as sums over rows: all 256 KiB of the registers of a
multiprocessor.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import launch
from slap_fast.kernels.scores.tiles import finite_or_zero

# Of a row's columns, a thread reads a vector of 16 bytes at a time, and a warp reads 32 vectors.
_LANES = 32
_ROWS = 16
# Rows that a program of the pass by columns sums: what it leaves is a thousandth of what it reads.
_CHUNK = 512
# Stored rows and columns are multiples of this: whole tiles of the product, and 32 vectors.
_WHOLE = 256


def whole(size: int) -> int:
    """Rows or columns stored for `size` of them."""
    return -(-size // _WHOLE) * _WHOLE


def new_scores(teacher: Tensor, prototypes: Tensor) -> Tensor:
    """`[T, K]`, either rounded up to whole tiles: float32 for float32, else float16.

    Uninitialised but for columns beyond the last, which are read: they are 0.
    """
    dtype = torch.float32 if teacher.dtype == torch.float32 else torch.float16
    scores = teacher.new_empty(whole(teacher.shape[0]), whole(prototypes.shape[0]), dtype=dtype)
    scores[:, prototypes.shape[0] :].zero_()
    return scores


def column_shift(prototypes: Tensor, potential: Tensor | None, unit: float) -> Tensor:
    """`[K]` in whole tiles: what the potential adds to logits, times `unit`, and -inf beyond the last prototype."""
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
    """Base-2 logarithms of the sums over columns of `exp(scale * scores)`, times 2 to the `shift` of their columns."""
    row = tl.program_id(0) * BLOCK_R
    within = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]  # [LANES, VECTOR]
    scores += tl.cast(row, tl.int64) * pitch + (tl.arange(0, BLOCK_R) * pitch)[:, None, None] + within[None, :, :]
    multiplier = tl.load(scale) * 1.4426950408889634
    # A lane has sums of its own until the end: no shuffles within the loop.
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
    """Sums over a chunk of rows of the probabilities whose logarithms `rows_kernel` normalises."""
    first = tl.program_id(1) * CHUNK
    r = tl.arange(0, BLOCK_R)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    multiplier = tl.load(scale) * 1.4426950408889634
    shift_c = tl.load(shift + c)
    scores += tl.cast(first, tl.int64) * pitch + (r * pitch)[:, None] + c[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for begin in range(0, tl.minimum(CHUNK, rows - first), BLOCK_R):
        row = first + begin + r
        normaliser = tl.load(lse + row, mask=row < rows, other=float("inf"))
        similarity = tl.load(scores).to(tl.float32)  # [BLOCK_R, BLOCK_C]
        logits = tl.fma(similarity, multiplier, tl.broadcast_to(shift_c[None, :], similarity.shape))
        total += tl.exp2(logits - normaliser[:, None])
        scores += BLOCK_R * pitch
    tl.store(parts + tl.program_id(1) * tl.cast(columns, tl.int64) + c, tl.sum(total, 0), mask=c < columns)


def sweep(scores: Tensor, tokens: int, scale: Tensor, potential: Tensor) -> Tensor:
    """`[K]` log of each prototype's mass over the tokens, normalised under the potential of the round before.

    Args:
        scores: of `new_scores`, written.
        tokens: rows of it that count.
        scale: one float32 element.
        potential: `[K]` float32: the masses of the round before, over these tokens at least. They bound what follows: a
            prototype's largest probability is at least one over all tokens times all prototypes, so that sums need no
            other reference.
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
