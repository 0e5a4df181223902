from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.data.format.index import INDEX_DTYPE
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler, SamplingError
from slap_fast.data.sampling.mixture import Mixture


class FakeIndex(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.records)

    def release(self) -> None:
        pass


def make_index(
    clips: int,
    *,
    seconds: float | np.ndarray = 5.0,
    captions: int | np.ndarray = 1,
    shard_sizes: list[int] | None = None,
    folder: str = "data",
) -> Any:
    shard_sizes = shard_sizes or [len(part) for part in np.array_split(np.arange(clips), max(1, clips // 7))]
    records = np.zeros(clips, dtype=INDEX_DTYPE)
    records["shard"] = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    records["sample_rate"] = 16_000
    records["samples"] = np.round(np.asarray(seconds) * 16_000)
    records["captions"] = captions
    durations = (records["samples"] / 16_000).astype(np.float32)
    info = {"shards": [{"clips": size} for size in shard_sizes]}
    return FakeIndex(records=records, durations=durations, info=info, location=folder)


def make_sampler(
    clips: int = 50, batch_size: int = 8, seed: int = 3, shuffle_shards: int = 64, **index: Any
) -> GlobalBatchSampler:
    made = make_index(clips, **index)
    return GlobalBatchSampler(made, batch_size=batch_size, seed=seed, max_duration=30.0, shuffle_shards=shuffle_shards)


def clips_of(sampler: GlobalBatchSampler, steps: range) -> list[int]:
    return [ref.clip for step in steps for ref in sampler.rank_batch(step, 0, 1)]


def real_durations(clips: int, seed: int = 0) -> np.ndarray:
    """Seconds, distributed as in real audio datasets: log-normal up to 30 s, and one third exactly 10 s."""
    generator = np.random.default_rng(seed)
    seconds = np.clip(np.exp(generator.normal(2.0, 0.9, clips)), 0.5, 30.0)
    return np.where(generator.random(clips) < 0.33, 10.0, seconds)


def epochs_of(sampler: GlobalBatchSampler, epochs: int) -> list[list[int]]:
    """The clips of the first epochs."""
    size = sampler.clips_per_epoch
    stream = clips_of(sampler, range(-(-epochs * size // sampler.batch_size)))
    return [stream[epoch * size : (epoch + 1) * size] for epoch in range(epochs)]


@pytest.mark.parametrize(("clips", "batch_size"), [(48, 8), (50, 8), (13, 13), (13, 1), (17, 16), (1, 1)])
@pytest.mark.parametrize("shuffle_shards", [1, 2, 64])
def test_every_clip_appears_exactly_once_per_epoch(clips: int, batch_size: int, shuffle_shards: int) -> None:
    sampler = make_sampler(clips, batch_size, shuffle_shards=shuffle_shards)
    for epoch in epochs_of(sampler, 3):
        assert sorted(epoch) == list(range(clips))


def test_epochs_and_seeds_shuffle_differently() -> None:
    sampler = make_sampler(48, 8)
    first, second = clips_of(sampler, range(6)), clips_of(sampler, range(6, 12))
    assert first != sorted(first)
    assert first != second
    assert first != clips_of(make_sampler(48, 8, seed=4), range(6))


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_dataset_is_covered_each_epoch_and_can_resume_at_any_step(data: st.DataObject) -> None:
    shard_sizes = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any))
    total = sum(shard_sizes)
    long = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=9)))
    seconds = np.where(np.resize(long, total), 40.0, 5.0)
    usable = np.flatnonzero(seconds < 30).tolist()
    if not usable:
        with pytest.raises(SamplingError, match="0 usable clips"):
            make_sampler(total, 1, seconds=seconds, shard_sizes=shard_sizes)
        return
    batch_size = data.draw(st.integers(-(-len(usable) // 30), len(usable)))
    window, seed = data.draw(st.integers(1, 13)), data.draw(st.integers(0, 2**64 - 1))
    arguments: dict[str, Any] = {"seed": seed, "shuffle_shards": window, "seconds": seconds, "shard_sizes": shard_sizes}
    sampler = make_sampler(total, batch_size, **arguments)
    assert sampler.clips_per_epoch == len(usable)
    first, second = epochs_of(sampler, 2)
    assert sorted(first) == sorted(second) == usable
    step = data.draw(st.integers(0, len(usable) // batch_size))
    resumed = make_sampler(total, batch_size, **arguments)
    assert resumed.rank_batch(step, 0, 1) == sampler.rank_batch(step, 0, 1)


def test_a_batch_is_drawn_from_one_window_of_shards() -> None:
    sampler = make_sampler(4000, 50, shuffle_shards=4, shard_sizes=[100] * 40)
    places: dict[int, list[int]] = {}
    for step in range(80):
        shards = {clip // 100 for clip in clips_of(sampler, range(step, step + 1))}
        assert len(shards) == 4, "a window of 4 shards of 100 clips is 8 batches, so no batch spans two windows"
        for shard in shards:
            places.setdefault(shard, []).append(step)
    assert all(len(steps) == 8 and steps[-1] - steps[0] == 7 for steps in places.values())
    assert list(places) != sorted(places)


def test_a_window_of_all_shards_shuffles_uniformly() -> None:
    clips, seeds = 8, 1200
    samplers = (make_sampler(clips, clips, seed=seed, shard_sizes=[3, 1, 4]) for seed in range(seeds))
    counts = np.zeros((clips, clips), int)
    for sampler in samplers:
        counts[np.arange(clips), clips_of(sampler, range(1))] += 1
    expected = seeds / clips
    # 49 degrees of freedom; 5 deviations above the mean.
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_split_one_global_batch_in_equal_counts(world_size: int) -> None:
    sampler = make_sampler(50, 8, captions=3, seconds=real_durations(50))
    for step in range(20):
        alone = sampler.rank_batch(step, 0, 1)
        shares = [sampler.rank_batch(step, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {8 // world_size}
        assert sorted(ref for share in shares for ref in share) == sorted(alone)


def test_a_run_can_resume_with_another_number_of_ranks() -> None:
    arguments: dict[str, Any] = {"captions": 3, "seconds": real_durations(170)}
    expected = [sorted(make_sampler(170, 8, **arguments).rank_batch(step, 0, 1)) for step in range(60)]
    seen = []
    for steps, world_size in ((range(17), 2), (range(17, 40), 1), (range(40, 60), 4)):
        samplers = [make_sampler(170, 8, **arguments) for _ in range(world_size)]
        for step in steps:
            seen.append(
                sorted(
                    ref for rank, sampler in enumerate(samplers) for ref in sampler.rank_batch(step, rank, world_size)
                )
            )
    assert seen == expected


def test_ranks_get_nearly_equal_audio() -> None:
    seconds = real_durations(40_000)
    sampler = make_sampler(40_000, 2048, seconds=seconds, shard_sizes=[1000] * 40)
    for step in range(6):
        work = np.array([sum(seconds[ref.clip] for ref in sampler.rank_batch(step, rank, 64)) for rank in range(64)])
        assert work.max() - work.min() < 0.005 * work.mean()


def test_steps_can_be_computed_in_any_order() -> None:
    sequential = make_sampler(50, 8, captions=5)
    steps = [sequential.rank_batch(step, 1, 2) for step in range(40)]
    random_access = make_sampler(50, 8, captions=5)
    for step in (39, 0, 17, 6, 7, 38):
        assert random_access.rank_batch(step, 1, 2) == steps[step]


def test_a_distant_step_needs_no_replay() -> None:
    assert len(make_sampler().rank_batch(10**15, 0, 1)) == 8


def test_captions_are_drawn_per_epoch_and_clip() -> None:
    captions = np.arange(1, 51) % 6 + 1
    sampler = make_sampler(50, 10, captions=captions)
    drawn: dict[int, list[int]] = {clip: [] for clip in range(50)}
    for step in range(5 * 60):
        for clip, caption, _ in sampler.rank_batch(step, 0, 1):
            drawn[clip].append(caption)
    for clip, choices in drawn.items():
        assert set(choices) == set(range(captions[clip])), "60 epochs show every caption of up to six"
    many = [clip for clip in range(50) if captions[clip] == 6]
    assert len({tuple(drawn[clip][:10]) for clip in many}) == len(many), "clips draw independently of each other"


def test_clips_that_are_too_long_are_left_out_and_counted() -> None:
    seconds = np.full(20, 5.0)
    seconds[[3, 7]] = 30.01
    seconds[8] = 30 + 1 / 16_000
    seconds[9] = 30.0
    sampler = make_sampler(20, 4, seconds=seconds)
    assert [(skip.reason, skip.count) for skip in sampler.skipped] == [("longer than 30 s", 3)]
    assert sampler.clips_per_epoch == 17
    assert sorted(epochs_of(sampler, 1)[0]) == sorted(set(range(20)) - {3, 7, 8})


def test_long_clips_are_cropped_with_crop_above_max_duration() -> None:
    seconds = np.full(20, 5.0)
    seconds[3], seconds[8], seconds[9] = 300.0, 30 + 1 / 16_000, 30.0
    sampler = GlobalBatchSampler(
        make_index(20, seconds=seconds), batch_size=20, seed=1, max_duration=30.0, crop_above_max_duration=True
    )
    assert sampler.skipped == ()
    crops: dict[int, set[tuple[int, int] | None]] = {}
    for epoch in range(40):
        for ref in sampler.rank_batch(epoch, 0, 1):
            crops.setdefault(ref.clip, set()).add(ref.crop)
    assert all(crops[clip] == {None} for clip in set(range(20)) - {3, 8})
    assert crops[8] == {(0, 480_000), (1, 480_001)}
    starts = [crop[0] for crop in crops[3] if crop is not None and crop[1] - crop[0] == 480_000]
    assert len(starts) == 40, "a new crop in each epoch, always of 30 s"
    assert min(starts) < 600_000 < 3_700_000 < max(starts) <= 4_800_000 - 480_000


def test_a_dataset_smaller_than_a_batch_raises_with_the_reasons() -> None:
    seconds = np.full(10, 5.0)
    seconds[:4] = 60.0
    with pytest.raises(
        ValueError, match=r"6 usable clips .* batch of 8; 4 left out: longer than 30 s\. Lower schedule"
    ):
        make_sampler(10, 8, seconds=seconds)


@pytest.mark.parametrize(
    ("step", "rank", "world_size", "message"),
    [
        (0, 0, 3, "a multiple of 3"),
        (0, 2, 2, r"rank 2 is not in \[0, 2\)"),
        (0, -1, 2, r"rank -1"),
        (0, 0, 0, r"rank 0 is not in \[0, 0\)"),
        (-1, 0, 1, "step is -1"),
    ],
)
def test_invalid_steps_and_ranks_raise(step: int, rank: int, world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(50, 8).rank_batch(step, rank, world_size)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_duration": 0.0}, "max_duration"),
        ({"seed": -1}, "-1"),
        ({"shuffle_shards": 0}, "shuffle_shards is 0"),
    ],
)
def test_invalid_arguments_raise(changed: dict[str, Any], message: str) -> None:
    arguments = {"batch_size": 4, "seed": 0, "max_duration": 30.0} | changed
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(make_index(20), **arguments).rank_batch(0, 0, 1)


def test_replacements_are_deterministic_and_from_outside_the_batch() -> None:
    sampler = make_sampler(50, 8, captions=4)
    for step in (0, 6, 25):  # step 6 spans two epochs
        batch = {ref.clip for ref in sampler.rank_batch(step, 0, 1)}
        streams = set()
        for clip in batch:
            drawn = list(islice(sampler.replacements(step, clip), 60))
            assert drawn == list(islice(make_sampler(50, 8, captions=4).replacements(step, clip), 60))
            assert batch.isdisjoint(ref.clip for ref in drawn)
            assert len({ref.clip for ref in drawn}) > 20
            assert {ref.caption for ref in drawn} == set(range(4))
            streams.add(tuple(drawn))
        assert len(streams) == len(batch)


def test_replacements_in_a_batch_of_all_clips_are_its_other_clips() -> None:
    sampler = make_sampler(8, 8)
    assert {ref.clip for ref in islice(sampler.replacements(0, 5), 100)} == set(range(8)) - {5}


def test_a_single_clip_has_no_replacements() -> None:
    assert list(make_sampler(1, 1).replacements(0, 0)) == []


def test_replacements_of_a_clip_outside_the_step_raise() -> None:
    sampler = make_sampler(50, 8)
    outside = next(iter(set(range(50)) - {ref.clip for ref in sampler.rank_batch(2, 0, 1)}))
    with pytest.raises(ValueError, match=f"clip {outside} is not in step 2"):
        next(sampler.replacements(2, outside))


def make_mixture(sizes: list[int], weights: list[float], **index: Any) -> Mixture:
    return Mixture([make_index(size, folder=f"data/{n}", **index) for n, size in enumerate(sizes)], weights)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_every_dataset_of_a_mixture_gets_its_share_and_has_its_own_epochs(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 100) | st.integers(1, 9), min_size=1, max_size=4))
    batch_size = data.draw(st.integers(1, 40))
    sizes = [data.draw(st.integers(batch_size, 90)) for _ in weights]
    mixture = make_mixture(sizes, weights)
    sampler = GlobalBatchSampler(mixture, batch_size=batch_size, seed=5, max_duration=30.0)
    streams: list[list[int]] = [[] for _ in sizes]
    for step in range(30):
        refs = sampler.rank_batch(step, 0, 1)
        assert len(refs) == batch_size
        for ref in refs:
            dataset = int(np.searchsorted(mixture.starts, ref.clip, side="right")) - 1
            streams[dataset].append(ref.clip - int(mixture.starts[dataset]))
        for weight, stream in zip(weights, streams, strict=True):
            wanted = (step + 1) * batch_size * weight / sum(weights)
            assert abs(len(stream) - wanted) < len(sizes)
    for size, stream in zip(sizes, streams, strict=True):
        for start in range(0, len(stream), size):
            epoch = stream[start : start + size]
            assert len(set(epoch)) == len(epoch)


def test_equal_datasets_of_a_mixture_are_shuffled_differently() -> None:
    sampler = GlobalBatchSampler(make_mixture([40, 40], [1, 1]), batch_size=40, seed=5, max_duration=30.0)
    clips = np.array(clips_of(sampler, range(1)))
    assert (clips[:20] + 40 != clips[20:]).any()


def test_replacements_come_from_the_dataset_of_the_clip() -> None:
    sampler = GlobalBatchSampler(make_mixture([30, 9], [3, 1]), batch_size=8, seed=5, max_duration=30.0)
    batch = [ref.clip for ref in sampler.rank_batch(4, 0, 1)]
    for clip in batch:
        drawn = {ref.clip for ref in islice(sampler.replacements(4, clip), 80)}
        assert drawn.isdisjoint(batch)
        assert all((other < 30) == (clip < 30) for other in drawn)


def test_a_dataset_too_small_for_its_share_raises_with_its_location() -> None:
    message = r"5 usable clips are fewer than the 6 that data/1 contributes to .* batch of 8"
    with pytest.raises(SamplingError, match=message):
        GlobalBatchSampler(make_mixture([50, 5], [1, 3]), batch_size=8, seed=5, max_duration=30.0)


def test_skipped_clips_of_a_mixture_are_counted_per_dataset() -> None:
    seconds = (40.0 - np.arange(9), 5.0, 35.0)
    mixture = Mixture([make_index(9, seconds=each) for each in seconds], [1, 1, 1])
    with pytest.raises(SamplingError, match=r"0 usable"):
        GlobalBatchSampler(mixture, batch_size=1, seed=5, max_duration=34.0)
    sampler = GlobalBatchSampler(mixture, batch_size=1, seed=5, max_duration=35.0)
    assert [(skip.reason, skip.count) for skip in sampler.skipped] == [("longer than 35 s in data", 5)]
