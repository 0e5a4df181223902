"""A random order that is computed where it is looked at, and never stored."""

from __future__ import annotations

import numpy as np

from slap_fast.data.sampling.keyed_random import mixed

# Half rounds, each of which changes one half by the other. Four make a pseudorandom permutation of a large domain
# (Luby and Rackoff, 1988); over five elements it takes 24 until no order of them is likelier than another.
ROUNDS = 24


def permuted(positions: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """What stands at some positions of a random permutation of [0, size).

    A Feistel network over the least power of two that holds `size`. What falls outside is sent through it again until
    it falls inside (cycle walking, Black and Rogaway, 2002), which takes less than two passes on average.

    Args:
        positions: `[n]` integers in [0, size).
        size: in [1, 2^63].
        keys: `[ROUNDS]` uint64; each choice of keys is another permutation.

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
        high = high ^ (mixed(low ^ even) & high_mask)
        low = low ^ (mixed(high ^ odd) & low_mask)
    return (high << shift) | low
