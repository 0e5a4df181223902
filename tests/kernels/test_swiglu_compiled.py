from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slap_fast.kernels import swiglu as kernels
from slap_fast.ops.swiglu import backend_triton
from tests.kernels._compile import Compiled, cross_compile


def _compile(capability: tuple[int, int], rows: int, dtype: torch.dtype) -> list[Compiled]:
    """The forward and backward kernels at the width of the paper's MLPs."""
    gate_up, out = torch.empty(rows, 2 * 3072, dtype=dtype), torch.empty(rows, 3072, dtype=dtype)
    with cross_compile(capability) as launched:
        kernels.forward(gate_up, out)
        kernels.backward(out, gate_up, gate_up)
    return launched


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((8, 0), torch.float32)])
def test_no_spills_and_vectorized_memory_access(capability: tuple[int, int], dtype: torch.dtype) -> None:
    compiled = _compile(capability, 100, dtype)
    assert [kernel.name for kernel in compiled] == ["forward_kernel", "backward_kernel"]
    for kernel, vectors_in, vectors_out in zip(compiled, (2, 3), (1, 2), strict=True):
        assert kernel.local == 0, kernel
        assert kernel.registers <= 64, kernel
        a_tensor = 16 * dtype.itemsize // 16  # 16 values a thread
        assert kernel.ptx.count("ld.global.v4") == vectors_in * a_tensor, kernel
        assert kernel.ptx.count("st.global.v4") == vectors_out * a_tensor, kernel
    again = _compile(capability, 16, dtype)
    assert [kernel.hash for kernel in again] == [kernel.hash for kernel in compiled]


def test_what_the_kernels_cannot_serve_is_named() -> None:
    assert backend_triton.rejects(device=torch.device("cuda"), dtype=torch.bfloat16) is None
    assert "float64" in (backend_triton.rejects(device=torch.device("cuda"), dtype=torch.float64) or "")
    assert "on cpu" in (backend_triton.rejects(device=torch.device("cpu"), dtype=torch.float32) or "")
