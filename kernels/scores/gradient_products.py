"""Gradients of `a` and `b` from gradients of the scores `a @ b.T`, block by block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slap_fast.kernels.scores import float32_product
from slap_fast.kernels.scores.blocks import block_shape, blocks
from slap_fast.kernels.variants import chosen

# 128 MiB of gradients of scores, 8192 x 8192 in 16 bits. Both products then do 16,384 operations per float32 sum that
# they read and write, and have hundreds of tiles, enough for every multiprocessor.
_BLOCK_BYTES = 1 << 27


def float16_unit(weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Loss scale of the gradients of scores, which in a large batch are near 1e-6: a power of two for float16, else 1.

    Args:
        weights: factors of the probabilities. Gradients are at most twice the sum of their maxima.
        dtype: of the stored gradients.
    """
    if dtype != torch.float16 or weights[0].numel() == 0:
        return torch.ones((), dtype=torch.float32, device=weights[0].device)
    bound = torch.stack([weight.nan_to_num(0.0).abs().amax() for weight in weights]).sum().clamp_min(1e-30)
    return torch.exp2(torch.floor(14.0 - torch.log2(bound)))


def gradients(
    a: Tensor,
    b: Tensor,
    fill: Callable[[Tensor, tuple[int, int], tuple[int, int]], None],
    *,
    dtype: torch.dtype,
    needs_a: bool = True,
    needs_b: bool = True,
    factor: Tensor | None = None,
    block_rows: int = 0,
) -> tuple[Tensor, Tensor]:
    """`factor * (G @ b, G.T @ a)` for the `[R, C]` gradients G of the scores, which exist one block at a time.

    Products and sums are float32. The order of blocks is fixed: the same bits from run to run.

    Args:
        a: `[R, D]`, last stride 1.
        b: `[C, D]`, the same dtype.
        fill: called with a tensor of the dtype of `a` and the `(begin, end)` of G's rows and columns to write to it.
            The tensor is the corner of one whose rows, columns and pitch are multiples of `blocks.TILE`: `fill` may
            store whole tiles without a mask, 16 bytes at a time. Values beyond the corner are never read.
        dtype: of the results: float32 or that of `a`.
        needs_a, needs_b: False: that result has the shape `[0]`.
        factor: one float32 element; None: 1.
        block_rows: rows of a block, rounded up to whole tiles; 0: as many as fit a fixed amount of memory.
    """
    rows, columns = a.shape[0], b.shape[0]
    block_rows, block_columns = block_shape(rows, columns, _BLOCK_BYTES // a.dtype.itemsize, block_rows)
    grad_a = a.new_empty(a.shape if needs_a else 0, dtype=dtype)
    grad_b = b.new_empty(b.shape if needs_b else 0, dtype=dtype)
    if not (needs_a or needs_b):
        return grad_a, grad_b
    if rows == 0 or columns == 0:
        return grad_a.zero_(), grad_b.zero_()

    def sums(grad: Tensor, rows: int, others: Tensor) -> Tensor:
        """Memory for float32 sums of products: the result itself if it is float32, else `rows` rows beside it."""
        if dtype == torch.float32 or grad.dim() == 1:
            return grad
        return others.new_empty(rows, others.shape[1], dtype=torch.float32)

    several = rows > block_rows
    sums_a = sums(grad_a, min(rows, block_rows), a)
    sums_b = sums(grad_b, columns if several else min(columns, block_columns), b)
    block = a.new_empty(block_rows, block_columns)
    scratch = None
    if not (a.is_cuda and a.dtype == torch.float32 and chosen("gradient_product") == "tf32x3"):
        most = max(
            min(rows, block_rows) if columns > block_columns else 0, min(columns, block_columns) if several else 0
        )
        scratch = a.new_empty(most, a.shape[1], dtype=torch.float32)
    for first, last in blocks(rows, block_rows):
        total_a = sums_a[first:last] if sums_a is grad_a else sums_a[: last - first]
        for begin, end in blocks(columns, block_columns):
            grad = block[: last - first, : end - begin]
            fill(grad, (first, last), (begin, end))
            if needs_a:
                _add_product(total_a, grad, b[begin:end], scratch, new=begin == 0)
            if needs_b:
                total_b = sums_b[begin:end] if several or sums_b is grad_b else sums_b[: end - begin]
                _add_product(total_b, grad.T, a[first:last], scratch, new=first == 0)
                if last == rows:
                    _finish(grad_b[begin:end], total_b, factor)
        if needs_a:
            _finish(grad_a[first:last], total_a, factor)
    return grad_a, grad_b


def store_product(out: Tensor, x: Tensor, y: Tensor) -> None:
    """`out = x @ y` in float32, for matrices of any dtype."""
    if x.dtype == torch.float32:
        torch.mm(x, y, out=out)
    elif x.is_cuda:
        torch.mm(x, y, out_dtype=torch.float32, out=out)
    else:
        torch.mm(x.float(), y.float(), out=out)


def _add_product(total: Tensor, x: Tensor, y: Tensor, scratch: Tensor | None, *, new: bool) -> None:
    """`total += x @ y`, or `total = x @ y` if `new`, in float32; without `scratch` by the TF32x3 kernel.

    Not `addmm`: versions of torch differ in the dtypes that it takes for sums of 16-bit products.
    """
    if scratch is None:
        float32_product.store(total, x, y, add=not new)
        return
    product = total if new else scratch[: total.shape[0]]
    store_product(product, x, y)
    if not new:
        total += product


def _finish(out: Tensor, total: Tensor, factor: Tensor | None) -> None:
    if factor is not None:
        torch.mul(total, factor, out=out)
    elif out.dtype != total.dtype:
        out.copy_(total)
