"""Native code in tests: instruction sets to run, and a context manager that forces one."""

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
    """Instruction sets of this build that the machine supports, limited by SLAP_FAST_ISA."""
    module = native.load()
    if module is None:
        return []
    names = ["baseline", "avx2", "avx512", "avx512_bf16"]
    best = os.environ.get(native.ISA_VARIABLE) or module.detected_isa()
    return [name for name in module.compiled_isas() if name in names[: names.index(best) + 1]]


@contextmanager
def native_code(*, isa: str | None = None, threads: int | None = None) -> Iterator[None]:
    """Run native code with this instruction set and thread count, and restore both."""
    module, chosen, count = native.load(), native.isa(), torch.get_num_threads()
    assert module is not None
    try:
        module.force_isa(isa or chosen)
        torch.set_num_threads(threads or count)
        yield
    finally:
        module.force_isa(chosen)
        torch.set_num_threads(count)
