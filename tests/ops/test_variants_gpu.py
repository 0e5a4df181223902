"""Every variant of a kernel, default or not, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from slap_fast.kernels import variants
from tests.ops._gpu_checks import (
    LENGTHS,
    check_attention,
    check_captions,
    check_contrastive,
    check_prototypes,
    check_swiglu,
)

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _attention() -> None:
    for dtype in DTYPES:
        for window in ((-1, -1), (48, 48)):
            check_attention("triton", dtype, (LENGTHS, LENGTHS), window)
    for window, head_dim in (((-1, 0), 64), ((0, 1), 64), ((47, 48), 128)):
        check_attention("triton", torch.bfloat16, (LENGTHS, LENGTHS), window, head_dim=head_dim)


def _contrastive() -> None:
    for dtype in DTYPES:
        for kind, by_ids in (("infonce", True), ("infonce", False), ("sigmoid", True)):
            check_contrastive("triton", 1000, 768, kind, by_ids, dtype)
        check_contrastive("triton", 129, 70, "infonce", True, dtype)


def _captions() -> None:
    for dtype in DTYPES:
        check_captions("triton", 0.1, 1e-3, dtype)


def _prototypes() -> None:
    for centering, dtype in (("sinkhorn", torch.float32), ("sinkhorn", torch.bfloat16), ("softmax", torch.float16)):
        check_prototypes("triton", centering, dtype)


def _swiglu() -> None:
    for dtype in DTYPES:
        check_swiglu("triton", 333, 1031, dtype)


CHECKS: dict[str, Callable[[], None]] = {
    "attention": _attention,
    "contrastive": _contrastive,
    "caption": _captions,
    "prototype": _prototypes,
    "swiglu": _swiglu,
}


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, all_ in variants.VARIANTS.items() for variant in all_]
)
def test_the_error_of_a_variant_is_at_most_twice_that_of_pytorch(name: str, variant: str) -> None:
    """A variant name starts with that of its op; any other is tested with all ops."""
    checks = [check for op, check in CHECKS.items() if name.startswith(op)] or list(CHECKS.values())
    with variants.use(**{name: variant}):
        for check in checks:
            check()
