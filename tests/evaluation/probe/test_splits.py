"""Splits of labeled sets: published folds and splits first, groups kept together, and never silently random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.data.labeled import LabeledFile, LabeledSet, LabelError
from slap_fast.evaluation.probe.splits import choose_splits


def labeled(clips: int, *, multi_label: bool = False, **columns: Any) -> LabeledSet:
    """Clip i is of class i % 3; `columns` give an attribute of LabeledFile for each clip."""
    files = [
        LabeledFile(Path(f"{at}.wav"), (at % 3,), **{name: of(at) for name, of in columns.items()})
        for at in range(clips)
    ]
    return LabeledSet("set", files, ["dog", "rain", "siren"], multi_label)


def values(found: LabeledSet, rows: np.ndarray, attribute: str) -> set[Any]:
    return {getattr(found.files[at], attribute) for at in rows.tolist()}


def test_published_folds_are_held_out_one_by_one_and_inner_folds_are_made_of_whole_folds() -> None:
    found = labeled(60, fold=lambda at: at // 12 + 1)
    chosen = choose_splits(found)
    assert (chosen.kind, chosen.warnings) == ("5 published folds", [])
    assert [values(found, split.test, "fold") for split in chosen.splits] == [{1}, {2}, {3}, {4}, {5}]
    for split in chosen.splits:
        assert len(split.train) + len(split.test) == 60
        for fit, validation in split.inner:
            fitted, held_out = (values(found, split.train[rows], "fold") for rows in (fit, validation))
            assert len(fitted | held_out) == 4
            assert not fitted & held_out


def test_published_splits_are_used_and_their_validation_split_chooses_the_regularization() -> None:
    found = labeled(60, split=lambda at: ("train", "val", "eval")[at // 20], multi_label=True)
    (split,) = choose_splits(found).splits
    assert values(found, split.test, "split") == {"eval"}
    ((fit, validation),) = split.inner
    assert values(found, split.train[fit], "split") == {"train"}
    assert values(found, split.train[validation], "split") == {"val"}
    (other,) = choose_splits(found, test_split="val").splits
    assert values(found, other.train, "split") == {"train", "eval"}


@pytest.mark.parametrize("multi_label", [False, True])
def test_without_folds_groups_stay_together_in_outer_and_inner_folds(multi_label: bool) -> None:
    found = labeled(90, group=lambda at: f"speaker {at // 6}", multi_label=multi_label)
    chosen = choose_splits(found)
    assert "folds of whole recordings or speakers" in chosen.kind
    assert sorted(np.concatenate([split.test for split in chosen.splits]).tolist()) == list(range(90))
    for split in chosen.splits:
        assert not values(found, split.train, "group") & values(found, split.test, "group")
        for fit, validation in split.inner:
            assert not values(found, split.train[fit], "group") & values(found, split.train[validation], "group")
    assert choose_splits(found, seed=1).splits[0].test.tolist() != chosen.splits[0].test.tolist()


def test_published_folds_that_separate_a_group_come_with_a_warning() -> None:
    crossing = labeled(60, fold=lambda at: at % 5 + 1, group=lambda at: f"recording {max(at, 54)}")
    assert choose_splits(crossing).warnings == [
        "1 recordings or speakers are in both training and test clips, so scores may be too high; the first: "
        "recording 54"
    ]
    alone = labeled(60, fold=lambda at: 1 if at else 2)  # one clip is all that fold 1 is trained on
    assert choose_splits(alone).splits[0].inner == []


def test_random_folds_come_with_a_warning() -> None:
    chosen = choose_splits(labeled(30))
    assert chosen.kind == "5 random folds"
    assert "these are random, so clips of one recording may be in training and test folds" in chosen.warnings[0]
    assert all(np.bincount([at % 3 for at in split.test]).tolist() == [2, 2, 2] for split in chosen.splits)
    small = choose_splits(labeled(10))
    assert "fewer clips than the 5 folds: dog (4), rain (3), siren (3)" in small.warnings[1]
    only = choose_splits(labeled(30, split=lambda at: "eval"))
    assert "only the split 'eval' is here" in only.warnings[0]


@pytest.mark.parametrize(
    ("columns", "test_split", "message"),
    [
        ({"fold": lambda at: 1 if at else None}, None, "0.wav has no fold, but 29 other clips have one"),
        ({"fold": lambda at: 3}, None, "all 30 clips are of fold 3"),
        ({"split": lambda at: ("a", "b")[at % 2]}, None, r"none of its splits is a test split \(a, b\)"),
        ({"split": lambda at: "train"}, "eval", "no clip to test on"),
        ({}, "eval", "no clip to test on"),
        ({"group": lambda at: "one"}, None, "all clips are of one recording or speaker"),
    ],
)
def test_splits_that_cannot_be_used_are_named(columns: Any, test_split: str | None, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        choose_splits(labeled(30, **columns), test_split=test_split)
