from __future__ import annotations

from itertools import permutations
from math import sqrt

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.data.sampling.keyed_permutation import ROUNDS, permuted


def keys(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**64, size=ROUNDS, dtype=np.uint64)


@given(st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_value_appears_once(size: int, seed: int) -> None:
    values = permuted(np.arange(size), size, keys(seed))
    np.testing.assert_array_equal(np.sort(values), np.arange(size))
    some = np.random.default_rng(seed).integers(size, size=5)
    np.testing.assert_array_equal(permuted(some, size, keys(seed)), values[some])


@given(st.integers(2**40, 2**62))
@settings(max_examples=20, deadline=None)
def test_very_large_sizes(size: int) -> None:
    positions = np.unique(np.random.default_rng(1).integers(size, size=1000))
    values = permuted(positions, size, keys(2))
    assert len(np.unique(values)) == len(positions)
    assert 0 <= values.min() < size // 50 < size - size // 50 < values.max() < size


def test_all_orders_of_five_are_equally_likely() -> None:
    draws = 2400
    orders = [tuple(permuted(np.arange(5), 5, keys(seed)).tolist()) for seed in range(draws)]
    expected = draws / 120
    squares = sum((orders.count(order) - expected) ** 2 / expected for order in permutations(range(5)))
    # 119 degrees of freedom; 5 deviations above the mean.
    assert squares < 119 + 5 * sqrt(2 * 119)


def test_neighbors_are_spread_in_a_large_permutation() -> None:
    size = 640_000
    values = permuted(np.arange(100_000, 104_096), size, keys(3))
    counts = np.bincount(values * 64 // size, minlength=64)
    assert ((counts - 64) ** 2 / 64).sum() < 63 + 5 * sqrt(2 * 63)
    # Two independent draws from [0, 1) differ by a third on average, with a standard deviation of 0.236.
    assert abs(np.abs(np.diff(values)).mean() / size - 1 / 3) < 5 * 0.236 / sqrt(len(values))
