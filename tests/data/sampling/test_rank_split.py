from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.data.sampling.rank_split import balanced_groups


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([0, 1, 30, 30_000]))
@settings(max_examples=80, deadline=None)
def test_every_item_is_in_one_of_equally_large_groups(groups: int, count: int, seed: int, heaviest: int) -> None:
    weights = np.random.default_rng(seed).integers(heaviest + 1, size=groups * count)
    members = balanced_groups(weights, groups)
    assert members.shape == (groups, count)
    assert sorted(members.ravel().tolist()) == list(range(groups * count))
    assert (np.diff(members, axis=1) > 0).all()
    loads = weights[members].sum(1)
    assert loads.max() - loads.min() <= weights.max(), "dealing in rounds bounds the difference by one item"
    np.testing.assert_array_equal(balanced_groups(weights, groups), members)


@pytest.mark.parametrize("groups", [2, 8, 64, 128])
def test_groups_of_sixteen_and_more_are_within_two_percent(groups: int) -> None:
    generator = np.random.default_rng(groups)
    seconds = np.clip(np.exp(generator.normal(2.0, 0.9, 2048)), 0.5, 30.0)
    seconds[generator.random(2048) < 0.33] = 10.0
    weights = np.rint(1000 * seconds).astype(np.int64)
    loads = weights[balanced_groups(weights, groups)].sum(1)
    assert loads.max() - loads.min() < 0.02 * loads.mean()


def test_swaps_balance_groups_that_dealing_leaves_uneven() -> None:
    # Only 10 + 6 + 1 against 9 + 7 + 1 is even.
    weights = np.array([10, 9, 7, 6, 1, 1])
    assert weights[balanced_groups(weights, 2)].sum(1).tolist() == [17, 17]
