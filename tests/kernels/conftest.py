"""Fixtures of the interpreted tests of the losses, and an interpreter that prepares Triton's language once."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    # The interpreter replaces the functions of triton.language at each launch, restores them at its end, and replaces
    # them again at each call of a device function, which takes longer than the calls themselves. Nothing is compiled in
    # this process: they stay replaced.
    interpreter._patch_lang = functools.cache(interpreter._patch_lang)
    interpreter._LangPatchScope.restore = lambda scope: None


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, so that partial results are combined over several blocks in both dimensions."""
    from slap_fast.kernels.scores import blocks, gradient_products, partial_sums

    monkeypatch.setattr(blocks, "TILE", 128)
    monkeypatch.setattr(partial_sums, "AREA", 128 * 128)
    monkeypatch.setattr(gradient_products, "_BLOCK_BYTES", 128 * 128)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Uninitialized memory reads as NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
