from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.matrix_product import matrix_product
from tests.ops._native import native_code, needs_native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Around the tile of a micro-kernel, few rows of more than one panel, and many rows of more than one block.
SHAPES = [(0, 3, 4), (3, 0, 2), (3, 4, 0), (1, 1, 1), (17, 50, 33), (97, 130, 801), (290, 1930, 801)]


def _matrix(rows: int, columns: int, dtype: torch.dtype, *, transposed: bool) -> Tensor:
    generator = torch.Generator().manual_seed(rows + 3 * columns)
    if transposed:
        return torch.randn(columns, rows, generator=generator).to(dtype).t()
    return torch.randn(rows, columns + 1, generator=generator).to(dtype)[:, 1:]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_as_exact_as_those_of_pytorch_in_float32(isa, dtype):
    for (rows, columns, depth), left, right in itertools.product(SHAPES, (False, True), (False, True)):
        a, b = _matrix(rows, depth, dtype, transposed=left), _matrix(depth, columns, dtype, transposed=right)
        exact = a.double() @ b.double()
        out = torch.full((rows, columns + 2), torch.nan)
        with native_code(isa=isa):
            assert matrix_product(a, b, out[:, 1:-1]).data_ptr() == out[:, 1:-1].data_ptr()
            added = matrix_product(a, b, torch.ones(rows, columns), accumulate=True)
        assert out[:, [0, -1]].isnan().all()
        allowed = 2 * (a.float() @ b.float() - exact).norm() + 1e-7 * exact.norm()
        assert (out[:, 1:-1] - exact).norm() <= allowed
        assert (added - (exact + 1)).norm() <= allowed + 1e-7 * (exact + 1).norm()


@pytest.mark.skipif(native.isa() in (None, "baseline"), reason="PyTorch serves and does not guarantee it")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_depend_on_neither_thread_count_nor_other_rows_and_columns(dtype):
    a, b = _matrix(400, 900, dtype, transposed=False), _matrix(900, 500, dtype, transposed=True)
    with native_code(threads=1):
        single = matrix_product(a, b)
    with native_code(threads=5):
        assert torch.equal(matrix_product(a, b), single)
        assert torch.equal(matrix_product(a[100:107], b[:, 33:]), single[100:107, 33:])


def test_it_works_without_native_code(monkeypatch):
    monkeypatch.setattr(native, "isa", lambda: None)
    a, b = _matrix(5, 7, torch.bfloat16, transposed=False), _matrix(7, 4, torch.bfloat16, transposed=False)
    product = a.float() @ b.float()
    torch.testing.assert_close(matrix_product(a, b, torch.full((5, 4), torch.nan)), product)
    torch.testing.assert_close(matrix_product(a, b, product.clone(), accumulate=True), 2 * product)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.zeros(4, 2)}, r"\(2, 3\) and \(4, 2\)"),
        ({"b": torch.zeros(3, 2, dtype=torch.bfloat16)}, "float32 and torch.bfloat16"),
        ({"a": torch.zeros(2, 3).double(), "b": torch.zeros(3, 2).double()}, "float64"),
        ({"accumulate": True}, "out is None"),
        ({"b": torch.zeros(3, 2, device="meta")}, "b is on meta"),
        ({"out": torch.zeros(2, 3)}, r"out is torch.float32 of shape \(2, 3\)"),
        ({"out": torch.zeros(2, 2).double()}, "out is torch.float64"),
        ({"out": torch.zeros(2, 2).t()}, r"strides \(1, 2\)"),
    ],
)
def test_the_error_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        matrix_product(**{"a": torch.zeros(2, 3), "b": torch.zeros(3, 2)} | change)
