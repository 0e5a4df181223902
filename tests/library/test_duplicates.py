"""Duplicates: groups, their originals, and what is never joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.library import duplicates
from slap_fast.library.database import Recording
from slap_fast.library.duplicates import group_duplicates
from slap_fast.library.errors import LibraryError


def _recording(number: int, *, seconds: float = 5.0, age: int = 0, content: int | None = None) -> Recording:
    digest = (number if content is None else content).to_bytes(16, "big")
    return Recording(number, f"/sounds/{number:03}.wav", "", 1000, age * 10**9, digest, seconds, "complete")


def _at(*degrees: float) -> np.ndarray:
    """Unit vectors in a plane, `[N, 2]`."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def _numbers(groups: list[duplicates.DuplicateGroup]) -> list[list[int]]:
    return [[copy.recording.id for copy in group.copies] for group in groups]


def test_a_chain_of_small_differences_does_not_join_recordings_that_differ() -> None:
    # Neighbors have a similarity of 0.985, every second one of 0.94.
    recordings = [_recording(number, age=number) for number in range(5)]
    groups = group_duplicates(recordings, _at(0, 10, 20, 30, 40), threshold=0.98)
    assert _numbers(groups) == [[0, 1], [2, 3]]


def test_equal_embeddings_are_similar_by_the_highest_threshold() -> None:
    # In float32, the similarity of many unit vectors with themselves is slightly below 1.
    embeddings = np.random.default_rng(0).standard_normal((20, 768)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    recordings = [_recording(number, age=number) for number in range(40)]
    groups = group_duplicates(recordings, np.concatenate([embeddings, embeddings]), threshold=1.0)
    assert _numbers(groups) == [[number, number + 20] for number in range(20)]


def test_the_original_is_the_oldest_and_the_longest_is_named() -> None:
    recordings = [_recording(0, age=9), _recording(1, age=3, seconds=4.5), _recording(2, age=5, seconds=5.5)]
    (group,) = group_duplicates(recordings, _at(0, 1, 3))
    assert _numbers([group]) == [[1, 0, 2]]
    assert (group.original.id, group.longest.id) == (1, 2)


def test_any_modification_time_is_shown_and_a_damaged_embedding_hides_nothing() -> None:
    recordings = [_recording(0, age=10**12), _recording(1, age=-(10**12)), _recording(2, age=253_402_300_799)]
    (group,) = group_duplicates(recordings, _at(0, 0, 0))
    years = [recording["modified"][:10] for recording in group.to_json()["recordings"]]
    assert years == ["0001-01-01", "9999-12-31", "9999-12-31"]
    embeddings = _at(0, 0, 0)
    embeddings[1] = np.nan
    with pytest.raises(LibraryError, match=r"001.wav: its embedding is not finite"):
        group_duplicates(recordings, embeddings)


def test_identical_content_is_found_whatever_the_embeddings_are_and_comes_first() -> None:
    recordings = [_recording(0), _recording(1, age=1), _recording(2, age=2, content=0), _recording(3, age=3)]
    embeddings = _at(0, 3, 90, 180)
    (group,) = group_duplicates(recordings, embeddings)
    assert [(copy.recording.id, copy.identical) for copy in group.copies] == [(0, True), (2, True), (1, False)]
    assert _numbers(group_duplicates(recordings, embeddings, threshold=None)) == [[0, 2]]


def test_recordings_of_other_lengths_are_not_duplicates() -> None:
    recordings = [_recording(0, seconds=10), _recording(1, seconds=8), _recording(2, seconds=7.9)]
    assert _numbers(group_duplicates(recordings, _at(0, 0, 0))) == [[0, 1]]
    assert _numbers(group_duplicates(recordings, _at(0, 0, 0), length_ratio=2)) == [[0, 1, 2]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 359), st.integers(0, 3), st.integers(8, 12)), max_size=40), st.integers(1, 7))
def test_groups_follow_the_rule_whatever_the_blocks(rows: list[tuple[int, int, int]], block: int) -> None:
    recordings = [_recording(number, age=age, seconds=float(seconds)) for number, (_, age, seconds) in enumerate(rows)]
    # No recording is equally near to two originals: rounding would choose.
    embeddings = _at(*[degrees + 0.01 * number for number, (degrees, _, _) in enumerate(rows)]).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ROWS", block)
        patch.setattr(duplicates, "_COLUMNS", block + 1)
        groups = group_duplicates(recordings, embeddings)
    assert _numbers(groups) == _numbers(group_duplicates(recordings, embeddings))

    def alike(first: int, second: int) -> bool:
        lengths = sorted((recordings[first].seconds, recordings[second].seconds))
        near = float(embeddings[first] @ embeddings[second]) >= 0.98
        return near and lengths[1] <= 1.25 * lengths[0]

    # One by one, oldest first, as the docs state it.
    order = sorted(range(len(rows)), key=lambda row: (rows[row][1], -rows[row][2], row))
    originals: list[int] = []
    expected: dict[int, set[int]] = {}
    for row in order:
        near = [original for original in originals if alike(original, row)]
        if near:
            best = max(near, key=lambda original: float(embeddings[original] @ embeddings[row]))
            expected[best].add(row)
        else:
            originals.append(row)
            expected[row] = {row}
    assert sorted(map(sorted, _numbers(groups))) == sorted(sorted(one) for one in expected.values() if len(one) > 1)


@pytest.mark.parametrize(("threshold", "ratio"), [(1.1, 1.25), (float("nan"), 1.25), (0.9, 0.5), (0.9, float("nan"))])
def test_arguments_out_of_range_are_refused(threshold: float, ratio: float) -> None:
    with pytest.raises(LibraryError, match="must be"):
        group_duplicates([], np.empty((0, 2), np.float32), threshold=threshold, length_ratio=ratio)
