"""Keyed random numbers: pure functions of (seed, purpose, step or clip), independent of earlier draws."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """One independent random stream per use. Changing a value changes every run."""

    EPOCH_ORDER = 1
    CAPTION = 2
    REPLACEMENT = 3
    MASKS = 4
    CROP = 5


# Constants of SplitMix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


def keyed_generator(seed: int, purpose: Purpose, first: int, second: int = 0) -> np.random.Generator:
    """A generator that is a pure function of its key: the same on every rank, after a resume, in any order of calls.

    Philox is counter-based (Salmon et al., 2011): its key is `(seed, purpose)` and the upper half of its counter is
    `(first, second)`, so the streams of different keys never overlap.

    Args:
        seed, first, second: integers in [0, 2^64).

    Raises:
        ValueError: one of them is out of range.
    """
    for value in (seed, first, second):
        if not 0 <= value < 2**64:
            raise ValueError(f"{value} cannot key a random stream; seeds, steps and clips must be in [0, 2^64)")
    # uint64 arrays: NumPy converts a list of Python integers of 2^63 and more to floats.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, first, second], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def keyed_words(seed: int, purpose: Purpose, first: int, counters: np.ndarray) -> np.ndarray:
    """`[n]` uint64, one random word per counter: a pure function of its key, vectorized over the counters.

    SplitMix64 (Steele, Lea and Flood, 2014), initial state from `keyed_generator`: word `i` is its `i`-th output.

    Args:
        seed, first: integers in [0, 2^64).
        counters: `[n]` non-negative integers.
    """
    start = keyed_generator(seed, purpose, first).integers(2**64, size=1, dtype=np.uint64)
    return splitmix64(start + counters.astype(np.uint64) * _GOLDEN)


def to_range(words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Maps `[n]` random words to `[n]` int64 in [0, size), each size in [1, 2^32)."""
    return ((words >> np.uint64(32)) * sizes.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def splitmix64(words: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 on `[n]` uint64: a bijection; every output bit depends on all input bits."""
    for shift, factor in _MIXING:
        words = (words ^ (words >> shift)) * factor
    return words ^ (words >> _LAST_SHIFT)
