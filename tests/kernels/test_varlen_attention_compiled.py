from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from slap_fast.kernels import attention as kernels
from slap_fast.kernels import variants
from slap_fast.kernels.attention.tiles import _VARIANTS
from slap_fast.ops import PackedLayout
from slap_fast.ops.attention import backend_triton as backend
from tests.kernels._compile import Compiled, cross_compile

NARROW, WIDE, GLOBAL, CAUSAL = (48, 48), (300, 300), (-1, -1), (-1, 0)


def _compile(
    capability: tuple[int, int],
    lengths: list[int],
    *,
    head_dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    window: tuple[int, int] = NARROW,
    group: int = 1,
) -> list[Compiled]:
    """The kernels of forward and backward, in launch order."""
    layout = PackedLayout.from_lengths(lengths)
    qkv = torch.empty(layout.total, 3, 2 * group, head_dim, dtype=dtype)
    q, k, v = qkv[:, 0], qkv[:, 1, :2], qkv[:, 2, :2]
    out, lse = torch.empty(q.shape, dtype=dtype), torch.empty(2 * group, layout.total)
    offsets = layout.cu_seqlens, layout.cu_seqlens
    with cross_compile(capability) as launched:
        kernels.forward(q, k, v, *offsets, *window, 0.125)
        kernels.backward(out, lse, q, k, v, out, lse, *offsets, *window, 0.125)
    return launched


class Ceiling(NamedTuple):
    """Registers per thread and KiB of shared memory per block, of the forward, the dQ, and the dK, dV kernel."""

    registers: tuple[int, int, int]
    shared: tuple[int, int, int]


_TOO_FEW_ROWS = ("grad_kv_kernel", 256)

# A multiprocessor has 65,536 registers: with 128 threads per program, 128 registers allow four concurrent programs, 168
# three, 255 two.
CASES = {
    ((9, 0), NARROW, 64, torch.bfloat16, 1): Ceiling((168, 168, 168), (40, 48, 33)),
    ((9, 0), GLOBAL, 64, torch.bfloat16, 1): Ceiling((128, 168, 255), (48, 48, 50)),
    ((9, 0), CAUSAL, 64, torch.bfloat16, 3): Ceiling((168, 168, 255), (40, 48, 33)),
    ((9, 0), WIDE, 64, torch.bfloat16, 3): Ceiling((168, 168, 255), (40, 48, 33)),
    ((9, 0), GLOBAL, 64, torch.float32, 1): Ceiling((255, 255, 255), (64, 96, 48)),
    ((9, 0), CAUSAL, 256, torch.bfloat16, 3): Ceiling((255, 255, 255), (100, 132, 70)),
    ((8, 0), NARROW, 64, torch.bfloat16, 1): Ceiling((255, 168, 255), (24, 24, 25)),
    ((8, 0), GLOBAL, 64, torch.bfloat16, 1): Ceiling((255, 168, 255), (32, 24, 25)),
    ((8, 0), CAUSAL, 64, torch.float16, 3): Ceiling((255, 168, 255), (32, 24, 25)),
    ((8, 0), CAUSAL, 96, torch.float32, 1): Ceiling((255, 255, 255), (99, 99, 99)),
    ((8, 0), CAUSAL, 256, torch.bfloat16, 3): Ceiling((255, 255, 255), (99, 99, 99)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "window", "head_dim", "dtype", "group"), CASES)
def test_nothing_spills_and_programs_share_a_multiprocessor(
    capability: tuple[int, int], window: tuple[int, int], head_dim: int, dtype: torch.dtype, group: int
) -> None:
    ceiling = CASES[capability, window, head_dim, dtype, group]
    compiled = _compile(capability, [100, 28], head_dim=head_dim, dtype=dtype, window=window, group=group)
    assert [kernel.name for kernel in compiled] == ["forward_kernel", "grad_q_kernel", "grad_kv_kernel"]
    for kernel, registers, shared in zip(compiled, *ceiling, strict=True):
        assert kernel.local == 0, kernel
        assert kernel.registers <= registers, kernel
        assert kernel.shared <= 1024 * shared, kernel
        if dtype != torch.float32:
            warpgroups = capability == (9, 0) and (kernel.name, head_dim) != _TOO_FEW_ROWS
            assert ("wgmma.mma_async" if warpgroups else "mma.sync") in kernel.ptx, kernel
            assert "cp.async" in kernel.ptx, kernel  # asynchronous loads


# Registers per thread that allow the number of concurrent warps assumed in kernels/attention/tiles.py.
VARIANT_CEILINGS = {
    "attention_forward_global": {"128x64": 128, "128x128": 255, "64x128": 255, "64x64": 168},
    "attention_forward_local": {"64x64": 168, "64x32": 128},
    "attention_grad_q": {"64x64": 168, "64x32": 128},
    "attention_grad_kv_global": {"64x64": 255, "32x64": 168},
    "attention_grad_kv_local": {"32x64": 168, "64x64": 255},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, ceilings in VARIANT_CEILINGS.items() for variant in ceilings]
)
def test_no_variant_spills_and_each_stores_vectors(name: str, variant: str) -> None:
    with variants.use(**{name: variant}):
        launched = _compile((9, 0), [100, 28], window=NARROW if name.endswith("local") else GLOBAL)
    (kernel,) = [kernel for kernel in launched if kernel.name.removesuffix("_kernel") in name]
    assert kernel.local == 0, kernel
    assert kernel.registers <= VARIANT_CEILINGS[name][variant], kernel
    assert "wgmma.mma_async" in kernel.ptx, kernel
    assert "st.global.v4" in kernel.ptx, kernel
    # At most one copy of 4 bytes per step, before and in the loop.
    assert len(re.findall(r"cp\.async\.\w+\.shared\.global .*, 0x4, ", kernel.ptx)) <= 2, kernel


def test_every_variant_has_a_tile_and_the_first_is_the_default() -> None:
    assert {name: tuple(tiles) for name, tiles in _VARIANTS.items()} == {
        name: names for name, names in variants.VARIANTS.items() if name.startswith("attention")
    }
    for name, ceilings in VARIANT_CEILINGS.items():
        assert variants.VARIANTS[name] == tuple(ceilings)


@pytest.mark.slow
def test_other_lengths_and_numbers_of_clips_recompile_nothing() -> None:
    first = _compile((9, 0), [100, 28])
    for lengths in ([1], [16] * 16, [3, 0, 5], [750] * 9):
        again = _compile((9, 0), lengths)
        assert [kernel.hash for kernel in again] == [kernel.hash for kernel in first]


def test_a_call_that_the_kernels_cannot_serve_is_refused_with_the_reason() -> None:
    def reason(dtype: torch.dtype, head_dim: int, device: str = "cuda") -> str:
        return backend.rejects(device=torch.device(device), dtype=dtype, head_dim=head_dim) or ""

    assert reason(torch.bfloat16, 256) == reason(torch.float32, 128) == ""
    assert "float64" in reason(torch.float64, 64)
    assert "dimension is 257" in reason(torch.float16, 257)
    assert "up to 128" in reason(torch.float32, 129)
    assert "on cpu" in reason(torch.float32, 64, "cpu")
