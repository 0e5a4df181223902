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


@pytest.mark.gpu
def test_batches_decoded_on_the_gpu_equal_those_of_soundfile(tmp_path: Path) -> None:
    for package in ("soundfile", "soxr"):
        pytest.importorskip(package)
    from slap_fast.data.decoding import make_decoder
    from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
    from tests.data.builders import as_lists, make_loader, make_tokenizer, write_damaged_dataset

    tokenizer = make_tokenizer()
    index = write_damaged_dataset(tmp_path / "data")
    for crop in (False, True):
        sampler = GlobalBatchSampler(
            index, batch_size=8, seed=11, max_duration=0.2 if crop else 30.0, crop_above_max_duration=crop
        )
        reference = make_loader(index, tokenizer, sampler=sampler)
        expected = [as_lists(batch) for _, batch in reference]
        loader = make_loader(
            index, tokenizer, sampler=sampler, decoder=make_decoder("gpu", device="cuda"), pin_memory=True
        )
        batches = []
        for _, batch in loader:
            assert batch.waveform.is_cuda
            assert batch.input_ids.is_pinned()
            moved = batch.to("cuda", non_blocking=True)
            assert moved.waveform.data_ptr() == batch.waveform.data_ptr()
            batches.append(as_lists(moved))
        assert batches == expected
        assert loader.dropped == reference.dropped


@pytest.mark.gpu
def test_memory_of_a_batch_is_not_reused_while_the_gpu_reads_it(tmp_path: Path) -> None:
    import torch

    for package in ("soundfile", "soxr"):
        pytest.importorskip(package)
    from slap_fast.data.decoding import make_decoder
    from tests.data.builders import make_clip, make_loader, make_tokenizer, write_dataset

    tokenizer = make_tokenizer()
    index = write_dataset(tmp_path / "data", [make_clip(number) for number in range(30)])
    expected = [batch.waveform for _, batch in make_loader(index, tokenizer, stop_step=40)]
    work = torch.randn(4096, 4096, device="cuda")
    copies = []
    for _, batch in make_loader(index, tokenizer, stop_step=40, decoder=make_decoder("gpu", device="cuda")):
        waveform = batch.to("cuda").waveform
        del batch
        # The copy waits behind this, while the loader decodes the next batches.
        for _ in range(20):
            work = work @ work * 0.01
        copies.append(waveform.clone())
        del waveform
    assert all(torch.equal(copy.cpu(), waveform) for copy, waveform in zip(copies, expected, strict=True))
