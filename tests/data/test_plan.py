from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slap_fast.data.index import INDEX_DTYPE
from slap_fast.data.plan import Plan


class FakeIndex(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.records)


def make_index(clips: int, *, seconds: float | np.ndarray = 5.0, captions: int | np.ndarray = 1) -> Any:
    records = np.zeros(clips, dtype=INDEX_DTYPE)
    records["sample_rate"] = 16_000
    records["samples"] = np.asarray(seconds) * 16_000
    records["captions"] = captions
    return FakeIndex(records=records, durations=records["samples"] / 16_000)


def make_plan(clips: int = 50, batch_size: int = 8, seed: int = 3, **index: Any) -> Plan:
    return Plan(make_index(clips, **index), batch_size=batch_size, seed=seed, max_duration=30.0)


def clips_of(plan: Plan, steps: range) -> list[int]:
    return [ref.clip for step in steps for ref in plan.step(step, 0, 1)]


@pytest.mark.parametrize(("clips", "batch_size"), [(48, 8), (50, 8), (13, 13), (13, 1), (17, 16)])
def test_every_clip_comes_exactly_once_an_epoch(clips: int, batch_size: int) -> None:
    plan = make_plan(clips, batch_size)
    epochs = 3
    stream = clips_of(plan, range(-(-epochs * clips // batch_size)))
    for epoch in range(epochs):
        assert sorted(stream[epoch * clips : (epoch + 1) * clips]) == list(range(clips))


def test_epochs_and_seeds_shuffle_differently() -> None:
    plan = make_plan(48, 8)
    first, second = clips_of(plan, range(6)), clips_of(plan, range(6, 12))
    assert first != sorted(first)
    assert first != second
    assert first != clips_of(make_plan(48, 8, seed=4), range(6))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_one_global_batch_in_equal_counts(world_size: int) -> None:
    plan = make_plan(50, 8, captions=3)
    for step in range(20):
        alone = plan.step(step, 0, 1)
        shares = [plan.step(step, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {8 // world_size}
        assert [shares[position % world_size][position // world_size] for position in range(8)] == alone


def test_any_step_can_be_sought_in_any_order() -> None:
    walked = make_plan(50, 8, captions=5)
    steps = [walked.step(step, 1, 2) for step in range(40)]
    sought = make_plan(50, 8, captions=5)
    for step in (39, 0, 17, 6, 7, 38):
        assert sought.step(step, 1, 2) == steps[step]


def test_a_far_step_needs_no_replay() -> None:
    assert len(make_plan().step(10**15, 0, 1)) == 8


def test_captions_are_drawn_per_epoch_and_clip() -> None:
    captions = np.arange(1, 51) % 6 + 1
    plan = make_plan(50, 10, captions=captions)
    drawn: dict[int, list[int]] = {clip: [] for clip in range(50)}
    for step in range(5 * 60):
        for clip, caption in plan.step(step, 0, 1):
            drawn[clip].append(caption)
    for clip, choices in drawn.items():
        assert set(choices) == set(range(captions[clip])), "60 epochs show every caption of up to six"
    many = [clip for clip in range(50) if captions[clip] == 6]
    assert len({tuple(drawn[clip][:10]) for clip in many}) == len(many), "clips draw independently of each other"


def test_unusable_clips_are_left_out_and_listed() -> None:
    seconds = np.full(20, 5.0)
    seconds[[3, 7]] = 30.01
    seconds[4] = 0.0
    seconds[9] = 30.0
    captions = np.ones(20, dtype=int)
    captions[[4, 11]] = 0
    plan = make_plan(20, 4, seconds=seconds, captions=captions)
    listed = {skip.reason: skip.clips.tolist() for skip in plan.skipped}
    assert listed == {"no samples": [4], "no captions": [11], "longer than 30 s": [3, 7]}
    assert [skip.count for skip in plan.skipped] == [1, 1, 2]
    assert plan.clips_per_epoch == 16
    assert plan.steps_per_epoch == 4
    assert sorted(clips_of(plan, range(4))) == sorted(set(range(20)) - {3, 4, 7, 11})


def test_a_data_set_smaller_than_a_batch_is_refused_with_the_reasons() -> None:
    seconds = np.full(10, 5.0)
    seconds[:4] = 60.0
    with pytest.raises(
        ValueError, match=r"6 usable clips .* batch of 8; 4 left out: longer than 30 s\. Lower schedule"
    ):
        make_plan(10, 8, seconds=seconds)


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
def test_impossible_questions_are_refused(step: int, rank: int, world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(50, 8).step(step, rank, world_size)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"batch_size": 0}, "batch_size is 0"), ({"max_duration": 0.0}, "max_duration"), ({"seed": -1}, "-1")],
)
def test_arguments_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    arguments = {"batch_size": 4, "seed": 0, "max_duration": 30.0} | changed
    with pytest.raises(ValueError, match=message):
        Plan(make_index(20), **arguments).step(0, 0, 1)


def test_spares_are_deterministic_and_from_outside_the_batch() -> None:
    plan = make_plan(50, 8, captions=4)
    for step in (0, 6, 25):  # step 6 spans two epochs
        batch = {ref.clip for ref in plan.step(step, 0, 1)}
        streams = set()
        for clip in batch:
            spares = list(islice(plan.spares(step, clip), 60))
            assert spares == list(islice(make_plan(50, 8, captions=4).spares(step, clip), 60))
            assert batch.isdisjoint(ref.clip for ref in spares)
            assert len({ref.clip for ref in spares}) > 20
            assert {ref.caption for ref in spares} == set(range(4))
            streams.add(tuple(spares))
        assert len(streams) == len(batch)


def test_spares_of_a_batch_that_takes_all_clips_are_its_other_clips() -> None:
    plan = make_plan(8, 8)
    assert {ref.clip for ref in islice(plan.spares(0, 5), 100)} == set(range(8)) - {5}


def test_a_single_clip_has_no_spares() -> None:
    assert list(make_plan(1, 1).spares(0, 0)) == []


def test_spares_are_only_for_clips_of_the_step() -> None:
    plan = make_plan(50, 8)
    outside = next(iter(set(range(50)) - {ref.clip for ref in plan.step(2, 0, 1)}))
    with pytest.raises(ValueError, match=f"clip {outside} is not in step 2"):
        next(plan.spares(2, outside))
