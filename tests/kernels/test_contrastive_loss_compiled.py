"""Cross-compiled contrastive kernels and float32 product: registers, shared memory, instructions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slap_fast.kernels import variants
from slap_fast.kernels.scores import float32_product, partial_sums
from slap_fast.ops.contrastive import backend_triton as backend
from slap_fast.ops.contrastive.call import BackwardInputs, ContrastiveCall
from tests.kernels._compile import Compiled, cross_compile


def _compile(
    capability: tuple[int, int],
    kind: str,
    by_ids: bool,
    dtype: torch.dtype,
    *,
    rows: int = 300,
    columns: int = 340,
    width: int = 768,
) -> list[Compiled]:
    """The kernels of forward and backward, in the order of their launches."""
    audio, text = torch.empty(rows, width, dtype=dtype), torch.empty(columns, width, dtype=dtype)
    ids = (torch.zeros(rows, dtype=torch.int64), torch.zeros(columns, dtype=torch.int64)) if by_ids else (None, None)
    scale = torch.ones(())
    bias = torch.ones(()) if kind == "sigmoid" else None
    weights = torch.empty(rows), torch.empty(columns), torch.empty(rows)
    with cross_compile(capability) as launched:
        call = ContrastiveCall(audio, text, scale, bias, ids[0], ids[1], 0, kind, 0)
        sums = backend.forward(call)
        backend.backward(call, BackwardInputs(sums[0], sums[1], sums[3], sums[4], *weights))
    return launched


# Limits: registers per thread, KiB of shared memory per block. A multiprocessor has 65,536 registers and on sm_90
# 227 KiB: 128 registers for each of 256 threads, and less than half of that memory, let two programs run on one.
CASES = {
    ((9, 0), "infonce", False, torch.bfloat16, "128x128"): (128, 97),
    ((9, 0), "infonce", True, torch.bfloat16, "128x128"): (128, 97),
    ((9, 0), "sigmoid", False, torch.bfloat16, "128x128"): (128, 97),
    ((9, 0), "sigmoid", True, torch.bfloat16, "128x128"): (128, 97),
    ((9, 0), "infonce", True, torch.bfloat16, "128x256"): (255, 145),
    ((9, 0), "infonce", True, torch.bfloat16, "cublas"): (128, 97),
    ((9, 0), "infonce", True, torch.float32, "128x128"): (235, 97),
    ((8, 0), "infonce", True, torch.float32, "128x128"): (255, 49),
}


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "kind", "by_ids", "dtype", "tile"), CASES)
def test_no_kernel_spills_and_two_programs_share_a_multiprocessor(
    capability: tuple[int, int], kind: str, by_ids: bool, dtype: torch.dtype, tile: str
) -> None:
    registers, shared = CASES[capability, kind, by_ids, dtype, tile]
    with variants.use(contrastive_tile=tile):
        compiled = _compile(capability, kind, by_ids, dtype)
    keys = "flag_kernel" if by_ids else "keys_kernel"
    assert [kernel.name for kernel in compiled] == [
        keys,
        "statistics_kernel",
        *["fold_kernel"] * (4 if by_ids else 2),
        "products_kernel",
        "finish_rows_kernel",
        "finish_columns_kernel",
        keys,
        "gradient_kernel",
    ]
    for kernel in compiled:
        assert kernel.local == 0, kernel
        assert kernel.shared <= 1024 * shared, kernel
    for kernel in (compiled[1], compiled[-1]):
        assert kernel.registers <= registers, kernel
        if tile == "cublas":
            assert ".mma" not in kernel.ptx, kernel
        else:
            assert ("wgmma.mma_async" if capability == (9, 0) else "mma.sync") in kernel.ptx, kernel
            assert "cp.async" in kernel.ptx, kernel  # loads run ahead of the products
    assert compiled[-1].count("STG.E.64" if tile == "cublas" else "STG.E.128") > 0
    assert compiled[-1].count("STG.E.U16") == 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_the_float32_product_loads_and_stores_vectors_and_spills_nothing(capability: tuple[int, int]) -> None:
    block, audio, text = torch.empty(512, 1024), torch.empty(500, 768), torch.empty(900, 768)
    with cross_compile(capability) as launched:
        float32_product.store(torch.empty(500, 768), block[:500, :900], text)
        float32_product.store(torch.empty(900, 768), block[:500, :900].T, audio, add=True)
        for rows, depth in ((1, 1), (33, 5001)):  # the second is split along the depth
            float32_product.store(
                torch.empty(rows, 768), torch.empty(256, 5120)[:rows, :depth], torch.empty(depth, 768)
            )
    assert {kernel.hash for kernel in launched[2:]} == {launched[0].hash}
    for kernel in launched:
        assert kernel.local == 0, kernel
        assert kernel.shared <= 97 * 1024, kernel
        assert ("wgmma.mma_async" if capability == (9, 0) else "mma.sync") in kernel.ptx, kernel
        assert ".tf32" in kernel.ptx, kernel
        # Tensor cores truncate their sums: each step is added outside of them, in the loop and in the last step.
        assert kernel.count("FADD") >= 2 * 128 * 128 // 256, kernel
        assert kernel.count("LDGSTS.E.BYPASS.128") == kernel.count("LDGSTS"), kernel
        assert kernel.count("STG.E.128") == kernel.count("STG"), kernel


@pytest.mark.slow
def test_other_sizes_do_not_recompile(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _compile((9, 0), "infonce", True, torch.bfloat16)
    for rows, columns in ((1, 1), (16, 4096), (4097, 16)):
        again = _compile((9, 0), "infonce", True, torch.bfloat16, rows=rows, columns=columns)
        assert [kernel.hash for kernel in again] == [kernel.hash for kernel in first]
    monkeypatch.setattr(partial_sums, "AREA", 1 << 17)
    in_blocks = _compile((9, 0), "infonce", True, torch.bfloat16, rows=700, columns=900)
    assert len(in_blocks) > len(first)
    assert {kernel.hash for kernel in in_blocks} == {kernel.hash for kernel in first}


def test_unsupported_dtypes_and_devices_are_rejected_with_the_reason() -> None:
    def reason(dtype: torch.dtype, device: str = "cuda") -> str:
        return backend.rejects(device=torch.device(device), dtype=dtype, kind="infonce") or ""

    assert reason(torch.bfloat16) == reason(torch.float32) == ""
    assert "embeddings are torch.float64" in reason(torch.float64)
    assert "on cpu" in reason(torch.float32, "cpu")
