"""Matrix product on the CPU with float32 sums and a float32 result, for 16-bit matrices too.

On CPUs `torch.mm` rounds the product of 16-bit matrices to 16 bits, and has no `out_dtype`: a logit of 100 would be off
by 0.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.tensor_checks import STORAGE, aligned


def matrix_product(a: Tensor, b: Tensor, out: Tensor | None = None, *, accumulate: bool = False) -> Tensor:
    """`a @ b` in float32; with `accumulate`, added to `out`.

    The bits do not depend on the number of threads, and each element only depends on its row of `a` and its column of
    `b`. Without native code for the processor's vectors, PyTorch multiplies float32 copies.

    Args:
        a: `[M, K]` float32, bfloat16 or float16. Fastest with a unit stride in one dimension, as a transpose has.
        b: `[K, N]` of the dtype of `a`.
        out: `[M, N]` float32, last stride 1, such as a slice of rows or columns; None: a new tensor. Must not share
            memory with `a` or `b`.
        accumulate: add to the values of `out`.

    Returns:
        `out`.

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit.
    """
    out = _checked_out(a, b, out, accumulate)
    if native.isa() in (None, "baseline"):
        return out.addmm_(a.float(), b.float(), beta=1 if accumulate else 0)
    a, row_a, column_a = _readable(a)
    b, row_b, column_b = _readable(b)
    native.require().matrix_product(
        dtype=STORAGE[a.dtype],
        left=(a.data_ptr(), row_a, column_a),
        right=(b.data_ptr(), column_b, row_b),
        rows=a.shape[0],
        columns=b.shape[1],
        depth=a.shape[1],
        out=out.data_ptr(),
        stride=out.stride(0),
        accumulate=accumulate,
        threads=torch.get_num_threads(),
    )
    return out


def _readable(x: Tensor) -> tuple[Tensor, int, int]:
    """`x` or a copy, with its strides, one of which is 1."""
    rows, columns = x.shape
    row, column = x.stride()
    # The stride of a dimension of one element is never used: PyTorch may report any value.
    if rows < 2:
        row = 1
    if columns < 2:
        column = 1
    if 1 in (row, column):
        return aligned(x), row, column
    return x.contiguous(), columns, 1


def _checked_out(a: Tensor, b: Tensor, out: Tensor | None, accumulate: bool) -> Tensor:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a and b have shapes {tuple(a.shape)} and {tuple(b.shape)}; pass [M, K] and [K, N]")
    if a.dtype != b.dtype or a.dtype not in STORAGE:
        raise ValueError(f"a and b are {a.dtype} and {b.dtype}; pass one of float32, bfloat16 and float16 for both")
    shape = (a.shape[0], b.shape[1])
    if out is None:
        if accumulate:
            raise ValueError("accumulate is True and out is None; pass the matrix to add to")
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
    for name, x in (("a", a), ("b", b), ("out", out)):
        if x.device.type != "cpu":
            raise ValueError(f"{name} is on {x.device}; move it to the CPU")
    if out.shape != shape or out.dtype != torch.float32:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}; pass float32 of shape {shape}")
    if out.shape[1] > 1 and out.stride(1) != 1:
        raise ValueError(f"out has strides {out.stride()}; its last must be 1")
    return out
