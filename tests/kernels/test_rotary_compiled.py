from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slap_fast.kernels.rotary import rotate
from slap_fast.ops import PackedLayout
from tests.kernels._compile import Compiled, cross_compile


def _compile(capability: tuple[int, int], lengths: list[int], dtype: torch.dtype, thetas: list[float]) -> Compiled:
    """The kernel for a rotation in place of views of a packed projection."""
    layout = PackedLayout.from_lengths(lengths)
    q, k, _ = torch.empty(layout.total, 3, 12, 64, dtype=dtype).unbind(1)
    with cross_compile(capability) as launched:
        rotate(q, k, layout.cu_seqlens, 4, thetas, False, q, k)
    (kernel,) = launched
    return kernel


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize(("dtype", "thetas"), [(torch.bfloat16, [100.0, 10.0]), (torch.float32, [100.0])])
def test_no_spills_and_vectorized_memory_access(
    dtype: torch.dtype, thetas: list[float], capability: tuple[int, int]
) -> None:
    kernel = _compile(capability, [100, 28], dtype, thetas)
    assert kernel.local == 0
    assert kernel.registers <= 128
    assert "ld.global.v4" in kernel.ptx
    assert "st.global.v4" in kernel.ptx


@pytest.mark.slow
def test_changing_lengths_and_numbers_of_clips_do_not_recompile() -> None:
    hashes = {
        _compile((9, 0), lengths, torch.bfloat16, [100.0]).hash for lengths in ([100, 28], [1], [16] * 16, [3, 0, 5])
    }
    assert len(hashes) == 1
