"""Random numbers that depend on what they are for, never on what was drawn before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """One independent stream of randomness per use. The values are part of every run's reproducibility."""

    EPOCH_ORDER = 1
    CAPTION = 2
    SPARE = 3
    MASKS = 4
    CROP = 5


# The constants of SplitMix64.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)


def keyed_generator(seed: int, purpose: Purpose, first: int, second: int = 0) -> np.random.Generator:
    """A generator that is a pure function of its key: equal on every rank, at every resume, in any order of calls.

    Philox is counter-based (Salmon et al., 2011): the key is `(seed, purpose)` and the upper half of the counter is
    `(first, second)`, so two different keys can never share a number.

    Args:
        seed, first, second: integers in [0, 2^64).

    Raises:
        ValueError: one of them is out of range.
    """
    for value in (seed, first, second):
        if not 0 <= value < 2**64:
            raise ValueError(f"{value} cannot key a random stream; seeds, steps and clips must lie in [0, 2^64)")
    # uint64 arrays: numpy would turn a list of Python integers of 2^63 and more into floats.
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, first, second], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def keyed_words(seed: int, purpose: Purpose, first: int, counters: np.ndarray) -> np.ndarray:
    """`[n]` uint64, one random word for each counter: a pure function of its key, for many counters at once.

    SplitMix64 (Steele, Lea and Flood, 2014) from a start that `keyed_generator` gives: word `i` is what its `i`-th step
    would return.

    Args:
        seed, first: integers in [0, 2^64).
        counters: `[n]` non-negative integers.
    """
    start = keyed_generator(seed, purpose, first).integers(2**64, size=1, dtype=np.uint64)
    return mixed(start + counters.astype(np.uint64) * _GOLDEN)


def scaled(words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`[n]` int64: random words to integers in [0, size), each size in [1, 2^32)."""
    return ((words >> np.uint64(32)) * sizes.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def mixed(words: np.ndarray) -> np.ndarray:
    """`[n]` uint64 to uint64: a fixed bijection after which every bit depends on all (SplitMix64's output function)."""
    for shift, factor in _MIXING:
        words = (words ^ (words >> shift)) * factor
    return words ^ (words >> _LAST_SHIFT)
