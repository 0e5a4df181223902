from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slap_fast.kernels import rms_norm as kernels
from slap_fast.ops.rms_norm import backend_triton
from tests.kernels._compile import Compiled, cross_compile


def _compile(capability: tuple[int, int], rows: int, width: int, dtype: torch.dtype) -> list[Compiled]:
    """The forward and backward kernels."""
    x, weight, rstd = torch.empty(rows, width, dtype=dtype), torch.empty(width, dtype=dtype), torch.empty(rows)
    with cross_compile(capability) as launched:
        kernels.forward(x, x, weight, 1e-6, x, x, rstd)
        kernels.backward(x, x, x, weight, rstd, x, weight)
    return launched


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "width", "dtype", "registers"),
    [
        ((9, 0), 768, torch.bfloat16, (32, 80)),
        ((8, 0), 768, torch.float32, (32, 80)),
        ((9, 0), 8192, torch.float32, (48, 128)),
    ],
)
def test_no_spills_and_vectorized_memory_access(
    capability: tuple[int, int], width: int, dtype: torch.dtype, registers: tuple[int, int]
) -> None:
    compiled = _compile(capability, 100, width, dtype)
    assert [kernel.name for kernel in compiled] == ["forward_kernel", "backward_kernel"]
    for kernel, ceiling in zip(compiled, registers, strict=True):
        assert kernel.local == 0, kernel
        assert kernel.registers <= ceiling, kernel
        assert "ld.global.v4" in kernel.ptx, kernel
        assert "st.global.v4" in kernel.ptx, kernel
    again = _compile(capability, 16, width, dtype)
    assert [kernel.hash for kernel in again] == [kernel.hash for kernel in compiled]


def test_what_the_kernels_cannot_serve_is_named() -> None:
    def reason(dtype: torch.dtype, width: int, device: str = "cuda") -> str:
        return backend_triton.rejects(device=torch.device(device), dtype=dtype, width=width) or ""

    assert reason(torch.bfloat16, 768) == ""
    assert "float64" in reason(torch.float64, 768)
    assert "8193 values" in reason(torch.float32, 8193)
    assert "on cpu" in reason(torch.float32, 768, "cpu")
