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
