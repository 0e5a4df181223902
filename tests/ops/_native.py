"""Native code in tests: the instruction sets to run one after another in one process, and putting things back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from slap_fast import native

needs_native = pytest.mark.skipif(native.unavailable() is not None, reason="no native module in this build")
BACKENDS = [pytest.param("native", marks=needs_native), "torch"]


def instruction_sets() -> list[str]:
    """Those that this build has and this machine runs, up to SLAP_FAST_ISA, as a lesser machine would."""
    module = native.load()
    if module is None:
        return []
    names = ["baseline", "avx2", "avx512", "avx512_bf16"]
    best = os.environ.get(native.ISA_VARIABLE) or module.detected_isa()
    return [name for name in module.compiled_isas() if name in names[: names.index(best) + 1]]


@contextmanager
def native_code(*, isa: str | None = None, threads: int | None = None) -> Iterator[None]:
    """Native code with this instruction set and thread count."""
    module, chosen, count = native.load(), native.isa(), torch.get_num_threads()
    assert module is not None
    try:
        module.force_isa(isa or chosen)
        torch.set_num_threads(threads or count)
        yield
    finally:
        module.force_isa(chosen)
        torch.set_num_threads(count)
