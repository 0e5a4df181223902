from __future__ import annotations

import dataclasses
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from slap_fast import native
from slap_fast.config.model import ModelConfig, TextEncoderConfig
from slap_fast.data.decoding import DecodeFailure, make_decoder
from slap_fast.data.format.index import ClipIndex, DatasetError, StoredClip
from slap_fast.data.loading.loader import Loader
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.ops.log_mel.config import MelConfig
from tests.data.builders import (
    CONFIG,
    END,
    START,
    WORDS,
    as_lists,
    decoder_of,
    loader_threads,
    make_loader,
    split_batch,
    write_damaged_dataset,
)


def test_batches_contain_the_sampled_clips_and_captions(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler = GlobalBatchSampler(index, batch_size=8, seed=11, max_duration=30.0)
    loader = make_loader(index, tokenizer, start_step=2, stop_step=5)
    steps = []
    for step, batch in loader:
        steps.append(step)
        for ref, clip in zip(sampler.rank_batch(step, 0, 1), split_batch(batch), strict=True):
            pcm, _ = soundfile.read(io.BytesIO(index.read_audio(ref.clip)), dtype="int16")
            words = index.read_metadata(ref.clip)["captions"][ref.caption].split()
            assert clip["clip_ids"] == ref.clip
            assert clip["waveform"] == (pcm.astype(np.float32) / 32768).tolist()
            assert clip["input_ids"] == [START, *(3 + WORDS.index(word) for word in words), END]
    assert steps == [2, 3, 4]
    assert loader.dropped == []


@pytest.mark.parametrize("clips", ["index", "damaged_index"])
def test_batches_do_not_depend_on_prefetch_threads_or_decoder(
    clips: str, tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> None:
    index = request.getfixturevalue(clips)
    reference = make_loader(index, tokenizer, prefetch=0, decoder=make_decoder("soundfile", 1))
    expected = [(step, as_lists(batch)) for step, batch in reference]
    assert [step for step, _ in expected] == list(range(6))
    settings = [(1, "soundfile", 3, 64), (20, "auto", 2, 64), (2, "auto", 1, 3), (2, "gpu path", 2, 64)]
    if native.unavailable() is None:
        settings.append((2, "native", 2, 64))
    for prefetch, kind, threads, size in settings:
        decoder = make_decoder("auto", threads, size) if kind == "auto" else decoder_of(kind, threads, size)
        loader = make_loader(index, tokenizer, prefetch=prefetch, decoder=decoder)
        assert [(step, as_lists(batch)) for step, batch in loader] == expected
        assert loader.dropped == reference.dropped


@pytest.mark.parametrize("clips", ["index", "damaged_index"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_get_the_batch_of_a_single_rank(
    clips: str, world_size: int, tokenizer: PreTrainedTokenizerFast, request: pytest.FixtureRequest
) -> None:
    index = request.getfixturevalue(clips)
    alone = make_loader(index, tokenizer)
    ranks = [make_loader(index, tokenizer, rank=rank, world_size=world_size) for rank in range(world_size)]
    for (_, whole), *shares in zip(alone, *ranks, strict=True):
        pieces = [split_batch(batch) for _, batch in shares]
        assert {len(piece) for piece in pieces} == {8 // world_size}
        assert sorted((clip for piece in pieces for clip in piece), key=repr) == sorted(split_batch(whole), key=repr)
    assert sorted(drop for rank in ranks for drop in rank.dropped) == sorted(alone.dropped)


def test_starting_at_a_later_step_gives_the_same_batches(
    damaged_index: ClipIndex, tokenizer: PreTrainedTokenizerFast
) -> None:
    from_start = {step: as_lists(batch) for step, batch in make_loader(damaged_index, tokenizer)}
    later = {step: as_lists(batch) for step, batch in make_loader(damaged_index, tokenizer, start_step=4)}
    assert later == {step: from_start[step] for step in (4, 5)}


def test_a_second_iteration_starts_again(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    loader = make_loader(index, tokenizer)
    abandoned = iter(loader)
    first = as_lists(next(abandoned)[1])
    assert as_lists(next(iter(loader))[1]) == first
    with pytest.raises(StopIteration):
        next(abandoned)


class ReadSpy:
    """An index that records which clips were read."""

    def __init__(self, index: ClipIndex) -> None:
        self._index = index
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(self._index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def read_clips(self, clips: np.ndarray) -> list[StoredClip | DatasetError]:
        self.read.update(clips.tolist())
        return self._index.read_clips(clips)


def test_a_rank_reads_only_its_own_clips(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    spy = ReadSpy(index)
    list(make_loader(spy, tokenizer, rank=1, world_size=4, stop_step=3))
    sampler = GlobalBatchSampler(index, batch_size=8, seed=11, max_duration=30.0)
    assert spy.read == {ref.clip for step in range(3) for ref in sampler.rank_batch(step, 1, 4)}


def test_a_mixture_loads_the_clips_of_its_datasets(
    index: ClipIndex, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    other = write_damaged_dataset(tmp_path / "other")
    mixture = Mixture([other, index], [1, 3])
    sampler = GlobalBatchSampler(mixture, batch_size=8, seed=11, max_duration=30.0)
    loader = make_loader(mixture, tokenizer)
    for step, batch in loader:
        expected = {ref.clip for ref in sampler.rank_batch(step, 0, 1)}
        for clip in split_batch(batch):
            number: Any = clip["clip_ids"]
            source, row = (other, number) if number < len(other) else (index, number - len(other))
            pcm, _ = soundfile.read(io.BytesIO(source.read_audio(row)), dtype="int16")
            assert clip["waveform"] == (pcm.astype(np.float32) / 32768).tolist()
            assert number in expected or number < len(other), "a replacement is from the same dataset"
        assert sum(clip < len(other) for clip in batch.clip_ids.tolist()) == 2
    assert loader.dropped
    assert all(Path(drop.shard).parent == other.folder for drop in loader.dropped)


def test_a_cropped_clip_contains_the_sampled_range(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    sampler = GlobalBatchSampler(index, batch_size=8, seed=11, max_duration=0.2, crop_above_max_duration=True)
    loader = make_loader(index, tokenizer, sampler=sampler)
    lengths = []
    for step, batch in loader:
        for ref, clip in zip(sampler.rank_batch(step, 0, 1), split_batch(batch), strict=True):
            pcm, _ = soundfile.read(io.BytesIO(index.read_audio(ref.clip)), dtype="int16")
            first, last = ref.crop or (0, len(pcm))
            assert clip["waveform"] == (pcm[first:last].astype(np.float32) / 32768).tolist()
            lengths.append(len(clip["waveform"]))
    assert max(lengths) == 3200
    assert lengths.count(3200) > len(lengths) // 3
    assert min(lengths) < 3200


def test_long_captions_are_truncated_and_keep_the_end_token(
    index: ClipIndex, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = dataclasses.replace(CONFIG, text=TextEncoderConfig(max_length=4))
    lengths = set()
    for _, batch in make_loader(index, tokenizer, model_config=config):
        for clip in split_batch(batch):
            assert clip["input_ids"][0] == START
            assert clip["input_ids"][-1] == END
            lengths.add(len(clip["input_ids"]))
    assert lengths == {3, 4}


def test_the_loader_does_not_share_the_callers_tokenizer(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = [as_lists(batch) for _, batch in make_loader(index, tokenizer)]
    seen = []
    for _, batch in make_loader(index, tokenizer, prefetch=1):
        seen.append(as_lists(batch))
        tokenizer("a bell rings twice", truncation=True, max_length=3)
    assert seen == expected


class GatedDecoder:
    """Counts its batches; each waits until the gate is released."""

    sample_rate = 16_000

    def __init__(self) -> None:
        self._decoder = make_decoder("soundfile", 1)
        self.gate = threading.Semaphore(0)
        self.batches = 0
        self.decoded = threading.Condition()

    def decode(self, *arguments: Any) -> list[Tensor | DecodeFailure]:
        assert self.gate.acquire(timeout=60)
        with self.decoded:
            self.batches += 1
            self.decoded.notify_all()
        return self._decoder.decode(*arguments)


def test_at_most_prefetch_batches_are_built_ahead(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = GatedDecoder()
    decoder.gate.release(100)
    with make_loader(index, tokenizer, decoder=decoder, prefetch=2, stop_step=50) as loader:
        iterator = iter(loader)
        assert next(iterator)[0] == 0
        with decoder.decoded:
            assert decoder.decoded.wait_for(lambda: decoder.batches == 3, timeout=60)
            assert not decoder.decoded.wait_for(lambda: decoder.batches > 3, timeout=0.2)
        assert next(iterator)[0] == 1
        with decoder.decoded:
            assert decoder.decoded.wait_for(lambda: decoder.batches == 4, timeout=60)


def test_waiting_time_is_measured(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = GatedDecoder()
    loader = make_loader(index, tokenizer, decoder=decoder, prefetch=1)
    threading.Timer(0.3, decoder.gate.release, [2]).start()
    iterator = iter(loader)
    next(iterator)
    assert loader.waited_seconds >= 0.25
    assert 0.8 < loader.waited_share() <= 1
    assert loader.waited_share() == 0, "no wait since the last call"
    decoder.gate.release(100)
    with decoder.decoded:
        assert decoder.decoded.wait_for(lambda: decoder.batches >= 2, timeout=60)
    loader.close()


def leave_by_break(loader: Loader) -> None:
    for _ in loader:
        break


def leave_by_exception(loader: Loader) -> None:
    def train() -> None:
        for _ in loader:
            raise KeyError("training failed")

    with pytest.raises(KeyError):
        train()


def leave_by_context(loader: Loader) -> None:
    with loader:
        iterator = iter(loader)
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def leave_by_close(loader: Loader) -> None:
    iterator = iter(loader)
    next(iterator)
    loader.close()
    loader.close()


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_exception, leave_by_context, leave_by_close, list])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_no_thread_is_left_however_the_iteration_ends(
    leave: Any, prefetch: int, index: ClipIndex, tokenizer: PreTrainedTokenizerFast
) -> None:
    leave(make_loader(index, tokenizer, prefetch=prefetch, stop_step=30))
    assert not loader_threads()


def test_an_empty_range_of_steps_gives_no_batches(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    assert list(make_loader(index, tokenizer, start_step=6)) == []


@pytest.fixture
def bare_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_a_tokenizer_without_start_and_end_tokens_raises(
    index: ClipIndex, bare_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match="start and an end token"):
        make_loader(index, bare_tokenizer)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start_step": 7}, r"steps \[7, 6\)"),
        ({"start_step": -1}, r"steps \[-1, 6\)"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"max_consecutive_failures": -1}, "max_consecutive_failures is -1"),
        ({"world_size": 3}, "a multiple of 3"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"model_config": ModelConfig(mel=MelConfig(sample_rate=32_000))}, "16000 Hz, the model needs 32000 Hz"),
    ],
)
def test_invalid_arguments_raise(
    changed: dict[str, Any], message: str, index: ClipIndex, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(index, tokenizer, **changed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to pin memory for")
def test_pinned_memory_needs_a_gpu(index: ClipIndex, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="pin_memory needs a CUDA device"):
        make_loader(index, tokenizer, pin_memory=True)
