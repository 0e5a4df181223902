from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from slap_fast.data.decoding import DecodeFailure
from slap_fast.data.format.dataset_files import INDEX_NAME
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.loading.loader import TooManyBadClipsError
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
from tests.data.builders import (
    BAD,
    REASONS,
    damage_clip,
    loader_threads,
    make_clip,
    make_loader,
    write_dataset,
)


def test_bad_clips_are_replaced_recorded_and_logged(
    damaged_index: ClipIndex, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    # 40 clips in batches of 8: the first five steps meet each clip once.
    loader = make_loader(damaged_index, tokenizer, stop_step=5)
    with caplog.at_level(logging.WARNING):
        batches = [batch for _, batch in loader]
    assert [len(batch) for batch in batches] == [8] * 5
    met = {clip for batch in batches for clip in batch.clip_ids.tolist()}
    assert met.isdisjoint(BAD)
    assert met == set(range(40)) - set(BAD), "every good clip is still loaded"
    by_key = {drop.key: drop for drop in loader.dropped}
    assert set(by_key) == {f"clip-{number}" for number in BAD}
    for number, kind in BAD.items():
        drop = by_key[f"clip-{number}"]
        assert drop.shard == f"shard-{number // 10:06d}.tar"
        assert REASONS[kind] in drop.reason
        assert f"dropped clip clip-{number} of {drop.shard}: {drop.reason}" in caplog.messages


def test_too_many_bad_clips_in_a_row_raise_with_the_last_reasons(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    index = write_dataset(tmp_path / "data", [damage_clip(make_clip(number), "rate") for number in range(30)])
    loader = make_loader(index, tokenizer, max_consecutive_failures=20)
    message = (
        r"21 clips in a row .*max_consecutive_failures=20; the last of them: "
        r"(clip-\d+ of shard-\d+\.tar: the audio is at 44100 Hz.*){5}"
    )
    with pytest.raises(TooManyBadClipsError, match=message):
        next(iter(loader))
    assert len(loader.dropped) == 21
    assert not loader_threads()


def test_batches_before_the_failure_are_returned(damaged_index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler = GlobalBatchSampler(damaged_index, batch_size=1, seed=11, max_duration=30.0)
    bad = [sampler.rank_batch(step, 0, 1)[0].clip in BAD for step in range(40)]
    start = next(step for step in range(40) if not any(bad[step : step + 3]))
    first_bad = bad.index(True, start)
    loader = make_loader(
        damaged_index,
        tokenizer,
        batch_size=1,
        start_step=start,
        stop_step=40,
        prefetch=first_bad - start,
        max_consecutive_failures=0,
    )
    iterator = iter(loader)
    assert [next(iterator)[0] for _ in range(start, first_bad)] == list(range(start, first_bad))
    with pytest.raises(TooManyBadClipsError, match="1 clips in a row"):
        next(iterator)
    assert len(loader.dropped) == 1


def test_a_bad_clip_without_a_replacement_raises_with_its_reason(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    index = write_dataset(tmp_path / "data", [damage_clip(make_clip(0), "truncated")])
    message = r"no clip can replace .* clip-0 of shard-000000.tar: .*not readable"
    with pytest.raises(TooManyBadClipsError, match=message):
        next(iter(make_loader(index, tokenizer, batch_size=1)))


def test_a_shard_truncated_during_training_drops_only_its_clips(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    index = write_dataset(tmp_path / "data", [make_clip(number) for number in range(30)])
    with open(index.folder / index.shards[1], "r+b") as shard:
        shard.truncate(700)
    loader = make_loader(index, tokenizer)
    met = {clip for _, batch in loader for clip in batch.clip_ids.tolist()}
    assert met.isdisjoint(range(10, 20))
    assert {drop.shard for drop in loader.dropped} == {"shard-000001.tar"}
    assert any(drop.key == "row 15" for drop in loader.dropped), "its name is beyond the cut"


def test_a_clip_indexed_at_another_rate_is_dropped_without_reading_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    index = write_dataset(tmp_path / "data", [make_clip(number) for number in range(12)])
    records = np.array(index.records)
    records[4]["sample_rate"] = 2**32 - 1
    # At that rate within the maximum duration: 100 billion samples, which must never be allocated.
    records[4]["samples"] = 10**11
    np.save(index.folder / INDEX_NAME, records)
    loader = make_loader(ClipIndex.open(index.folder), tokenizer, stop_step=2)
    assert all(4 not in batch.clip_ids for _, batch in loader)
    assert {(drop.key, drop.reason) for drop in loader.dropped} == {
        ("clip-4", "the index says 4294967295 Hz, not 16000 Hz; run `slap-fast prepare` on the source")
    }


class BrokenDecoder:
    sample_rate = 16_000

    def decode(self, *_: Any) -> list[Tensor | DecodeFailure]:
        raise ZeroDivisionError("a bug, not bad data")


def test_an_exception_in_the_background_reaches_the_consumer(
    damaged_index: ClipIndex, tokenizer: PreTrainedTokenizerFast
) -> None:
    loader = make_loader(damaged_index, tokenizer, decoder=BrokenDecoder())
    with pytest.raises(ZeroDivisionError, match="a bug, not bad data"):
        next(iter(loader))
    assert not loader_threads()
