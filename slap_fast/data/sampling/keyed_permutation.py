"""Keyed permutation: a random order of [0, size) with random access, computed and not stored."""

from __future__ import annotations

import numpy as np

from slap_fast.data.sampling.keyed_random import splitmix64

# Feistel half rounds. Four give a pseudorandom permutation of a large domain (Luby and Rackoff, 1988); over five
# elements, 24 are needed until all orders are equally likely.
ROUNDS = 24


def permuted(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """The values of a random permutation of [0, size) at the given positions.

    A Feistel network over the smallest power of two that is at least `size`. Values outside [0, size) pass through it
    again until they are inside (cycle walking, Black and Rogaway, 2002), less than two passes on average.

    Args:
        positions: `[n]` integers in [0, size).
        size: in [1, 2^63].
        keys: `[ROUNDS]` uint64; they select the permutation.

    Returns:
        `[n]` int64.
    """
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], (size - 1).bit_length(), keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    shift = np.uint64(bits // 2)
    low_mask = np.uint64((1 << bits // 2) - 1)
    high_mask = np.uint64((1 << bits - bits // 2) - 1)
    low, high = values & low_mask, values >> shift
    for even, odd in keys.reshape(-1, 2):
        high = high ^ (splitmix64(low ^ even) & high_mask)
        low = low ^ (splitmix64(high ^ odd) & low_mask)
    return (high << shift) | low
