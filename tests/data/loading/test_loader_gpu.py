"""Page-locked batches. Imports inside the test: a GPU machine may lack the packages that write audio files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.gpu
def test_pinned_batches_equal_unpinned_ones(tmp_path: Path) -> None:
    for package in ("soundfile", "soxr"):
        pytest.importorskip(package)
    from tests.data.builders import as_lists, make_clip, make_loader, make_tokenizer, write_dataset

    tokenizer = make_tokenizer()
    index = write_dataset(tmp_path / "data", [make_clip(number) for number in range(30)])
    plain = [as_lists(batch) for _, batch in make_loader(index, tokenizer)]
    pinned = [batch for _, batch in make_loader(index, tokenizer, pin_memory=True)]
    assert all(batch.waveform.is_pinned() and batch.samples.cu_seqlens.is_pinned() for batch in pinned)
    assert [as_lists(batch) for batch in pinned] == plain
