"""Fixtures of the interpreted tests of the losses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


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
