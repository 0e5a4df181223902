from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import AugmentationConfig
from slap_fast.data.loading.augmentation import MaskSampler
from slap_fast.data.loading.collate import LoadedClip, collate, pack_waveforms

CONFIG = ModelConfig()
MASKS = MaskSampler(AugmentationConfig(), seed=5)


def make_clips(lengths: list[int], seed: int = 0) -> list[LoadedClip]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LoadedClip(
            clip=100 - item,
            waveform=torch.rand(length, generator=generator) * 2 - 1,
            input_ids=torch.randint(0, 1000, (2 + item,), generator=generator).tolist(),
        )
        for item, length in enumerate(lengths)
    ]


def test_a_batch_contains_its_clips_packed() -> None:
    lengths = [16_000, 1, 400, 401, 2960, 47_999]
    clips = make_clips(lengths)
    batch = collate(clips, CONFIG, MASKS, step=2)
    assert len(batch) == 6
    assert batch.samples.lengths == tuple(lengths)
    assert batch.samples.cu_seqlens.dtype == torch.int64
    assert batch.frames.cu_seqlens.dtype == batch.tokens.cu_seqlens.dtype == torch.int32
    assert torch.equal(batch.waveform, torch.cat([clip.waveform for clip in clips]))
    assert batch.waveform.dtype == torch.float32
    assert batch.frames.lengths == tuple(CONFIG.mel.num_frames(length) for length in lengths)
    assert batch.tokens.lengths == tuple(CONFIG.num_tokens(length) for length in lengths)
    assert batch.input_ids.tolist() == [token for clip in clips for token in clip.input_ids]
    assert batch.input_ids.dtype == torch.int64
    assert batch.text.lengths == (2, 3, 4, 5, 6, 7)
    assert batch.clip_ids.tolist() == [100, 99, 98, 97, 96, 95]


def test_masks_of_a_clip_do_not_depend_on_the_batch() -> None:
    clips = make_clips([16_000, 400, 32_000])
    batch = collate(clips, CONFIG, MASKS, step=2)
    assert batch.time_masked.shape == (batch.frames.total,)
    assert batch.mel_masked.shape == (3, CONFIG.mel.n_mels)
    assert batch.masked.lengths == tuple(length // 2 for length in batch.tokens.lengths)
    assert (batch.masked_tokens.diff() > 0).all()
    for item, clip in enumerate(clips):
        alone = collate([clip], CONFIG, MASKS, step=2)
        begin, end = batch.frames.cu_seqlens[item : item + 2].tolist()
        assert torch.equal(batch.time_masked[begin:end], alone.time_masked)
        assert torch.equal(batch.mel_masked[item], alone.mel_masked[0])
        begin, end = batch.masked.cu_seqlens[item : item + 2].tolist()
        assert torch.equal(batch.masked_tokens[begin:end] - batch.tokens.cu_seqlens[item], alone.masked_tokens)
    other_step = collate(clips, CONFIG, MASKS, step=3)
    assert not torch.equal(batch.masked_tokens, other_step.masked_tokens)


def test_an_empty_batch_raises() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        collate([], CONFIG, MASKS, step=0)


def test_a_clip_without_samples_or_tokens_raises() -> None:
    clips = make_clips([400, 400])
    with pytest.raises(ValueError, match="clip 99 has 0 samples"):
        collate([clips[0], clips[1]._replace(waveform=torch.empty(0))], CONFIG, MASKS, step=0)
    with pytest.raises(ValueError, match="0 caption tokens"):
        collate([clips[0]._replace(input_ids=[])], CONFIG, MASKS, step=0)


def test_contiguous_waveforms_are_packed_without_a_copy() -> None:
    flat = torch.arange(10.0)
    waveforms = flat[1:].split([2, 3, 4])
    packed = pack_waveforms(waveforms)
    assert packed.tolist() == list(range(1, 10))
    assert packed.data_ptr() == waveforms[0].data_ptr()
    some = pack_waveforms(waveforms[:2])
    assert some.tolist() == [1, 2, 3, 4, 5]


def test_waveforms_with_gaps_or_in_another_order_are_copied() -> None:
    flat = torch.arange(9.0)
    first, second, third = flat.split([2, 3, 4])
    assert pack_waveforms([first, third]).tolist() == [0, 1, 5, 6, 7, 8]
    assert pack_waveforms([second, first]).tolist() == [2, 3, 4, 0, 1]
    elsewhere = torch.from_numpy(np.array([7.0, 8.0], dtype=np.float32))
    assert pack_waveforms([first, elsewhere]).tolist() == [0, 1, 7, 8]


@pytest.mark.parametrize("size", [1, 2, 4, 7, 100])
def test_a_split_batch_equals_the_batches_of_its_parts(size: int) -> None:
    clips = make_clips([16_000, 1, 400, 401, 2960, 47_999, 800])
    parts = collate(clips, CONFIG, MASKS, step=2).split(size)
    assert [len(part) for part in parts] == [len(clips[first : first + size]) for first in range(0, 7, size)]
    for part, first in zip(parts, range(0, 7, size), strict=True):
        expected = collate(clips[first : first + size], CONFIG, MASKS, step=2)
        for field in dataclasses.fields(expected):
            actual, wanted = getattr(part, field.name), getattr(expected, field.name)
            if isinstance(wanted, torch.Tensor):
                assert torch.equal(actual, wanted), field.name
            else:
                assert actual.lengths == wanted.lengths, field.name
                assert torch.equal(actual.cu_seqlens, wanted.cu_seqlens), field.name
                assert actual.cu_seqlens.dtype == wanted.cu_seqlens.dtype, field.name


def test_splitting_into_parts_of_zero_clips_raises() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        collate(make_clips([400]), CONFIG, MASKS, step=0).split(0)
