"""Cross-compiled kernels of the vocabulary loss and the prototype loss: registers, shared memory, instructions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from slap_fast.kernels import variants
from slap_fast.ops.linear_cross_entropy import backend_triton as caption_backend
from slap_fast.ops.linear_cross_entropy.call import LinearCrossEntropyCall
from slap_fast.ops.prototype_cross_entropy import backend_triton as prototype_backend
from slap_fast.ops.prototype_cross_entropy.call import PrototypeCall
from slap_fast.ops.tensor_checks import matrix
from tests.kernels._compile import Compiled, cross_compile


def _captions(capability: tuple[int, int], dtype: torch.dtype, tokens: int, words: int) -> list[Compiled]:
    hidden, weight = torch.empty(tokens, 512, dtype=dtype), torch.empty(words, 512, dtype=dtype)
    with cross_compile(capability) as launched:
        target = torch.zeros(tokens, dtype=torch.int64)
        caption_backend.loss_and_gradients(LinearCrossEntropyCall(hidden, weight, target, -100, 0.1, 1e-4, True, True))
    return launched


def _prototypes(capability: tuple[int, int], dtype: torch.dtype, tokens: int, prototypes: int) -> list[Compiled]:
    features, matrix = torch.empty(tokens, 256, dtype=dtype), torch.empty(prototypes, 256, dtype=dtype)
    temperature, potential = torch.ones(()), torch.empty(prototypes)
    weight = torch.empty(tokens)
    with cross_compile(capability) as launched:
        _, scores = prototype_backend.first_sweep(features, matrix, temperature)
        prototype_backend.later_sweep(scores, tokens, temperature, potential)
        prototype_backend.loss_and_gradients(
            PrototypeCall(
                features, features, matrix, matrix, potential, weight, temperature, temperature, True, True, scores
            )
        )
    return launched


def _prototypes_recomputed(
    capability: tuple[int, int], dtype: torch.dtype, tokens: int, prototypes: int
) -> list[Compiled]:
    features, matrix = torch.empty(tokens, 256, dtype=dtype), torch.empty(prototypes, 256, dtype=dtype)
    temperature, potential = torch.ones(()), torch.empty(prototypes)
    weight = torch.empty(tokens)
    with cross_compile(capability) as launched:
        prototype_backend.sinkhorn_sweep(features, matrix, temperature, potential)
        prototype_backend.loss_and_gradients(
            PrototypeCall(
                features, features, matrix, matrix, potential, weight, temperature, temperature, True, True, None
            )
        )
    return launched


LOSSES = {"captions": _captions, "prototypes": _prototypes, "prototypes_recomputed": _prototypes_recomputed}
WITH_PRODUCTS = ("logsumexp_kernel", "statistics_kernel", "gradient_kernel")
PRODUCTS = {"captions": 2, "prototypes": 3, "prototypes_recomputed": 4}
# Limits: registers per thread, KiB of shared memory per block. Two programs share a multiprocessor with at most 128
# registers and less than half of the shared memory of sm_90.
CASES = {
    ("captions", (9, 0), torch.bfloat16): (128, 97),
    ("captions", (9, 0), torch.float32): (255, 65),
    ("captions", (8, 0), torch.float16): (128, 49),
    ("prototypes", (9, 0), torch.bfloat16): (128, 97),
    ("prototypes", (9, 0), torch.float32): (255, 65),
    ("prototypes", (8, 0), torch.float16): (255, 49),
    ("prototypes_recomputed", (9, 0), torch.bfloat16): (128, 97),
}


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "capability", "dtype"), CASES)
def test_no_kernel_spills_and_two_programs_share_a_multiprocessor(
    loss: str, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    registers, shared = CASES[loss, capability, dtype]
    compiled = LOSSES[loss](capability, dtype, 300, 500)
    assert len([kernel for kernel in compiled if kernel.name in WITH_PRODUCTS]) == PRODUCTS[loss]
    for kernel in compiled:
        assert kernel.local == 0, kernel
        assert kernel.registers <= registers, kernel
        assert kernel.shared <= 1024 * shared, kernel
        if kernel.name in WITH_PRODUCTS:
            assert ("wgmma.mma_async" if capability == (9, 0) else "mma.sync") in kernel.ptx, kernel
            assert "cp.async" in kernel.ptx, kernel  # loads run ahead of the products
        # Gradients are stored, and the teacher's scores stored and loaded, 16 bytes at a time.
        if kernel.name == "gradient_kernel":
            assert kernel.count("STG.E.128") == kernel.count("STG"), kernel
        if loss == "prototypes" and kernel.name != "fold_kernel":
            instruction = "STG.E.128" if kernel.name == "logsumexp_kernel" else "LDG.E.128"
            assert kernel.count(instruction) >= 4, kernel
            assert not kernel.count("LDG.E.U16"), kernel


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["captions", "prototypes"])
def test_wide_tiles_do_not_spill(loss: str) -> None:
    with variants.use(caption_tile="128x256", prototype_tile="128x256"):
        compiled = [kernel for kernel in LOSSES[loss]((9, 0), torch.bfloat16, 300, 500) if kernel.name in WITH_PRODUCTS]
    for kernel in compiled:
        assert kernel.local == 0, kernel
        assert "wgmma.mma_async.sync.aligned.m64n256k16" in kernel.ptx, kernel


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_other_sizes_do_not_recompile(loss: str) -> None:
    first = LOSSES[loss]((9, 0), torch.bfloat16, 300, 500)
    for tokens, others in ((1, 1), (16, 4096), (4097, 16)):
        again = LOSSES[loss]((9, 0), torch.bfloat16, tokens, others)
        assert [kernel.hash for kernel in again] == [kernel.hash for kernel in first]


def test_unsupported_dtypes_and_devices_are_rejected_with_the_reason() -> None:
    for backend in (caption_backend, prototype_backend):
        cpu, gpu = torch.device("cpu"), torch.device("cuda")
        assert backend.rejects(device=gpu, dtype=torch.bfloat16) is None
        assert "are torch.float64" in (backend.rejects(device=gpu, dtype=torch.float64) or "")
        assert "on cpu" in (backend.rejects(device=cpu, dtype=torch.float32) or "")


def test_rows_too_far_apart_for_the_kernels_are_copied() -> None:
    for strides, copied in (((1 << 23, 1), False), ((1 << 24, 1), True), ((64, 2), True), ((0, 1), False)):
        rows = torch.empty_strided((3, 8), strides, device="meta")
        assert (matrix(rows) is not rows) == copied
