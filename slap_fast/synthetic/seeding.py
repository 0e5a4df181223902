"""Generators by address instead of by order: no clip's randomness depends on any other's."""

from __future__ import annotations

import numpy as np

ORDER_STREAM = 0  # the order of the validation combinations
SPLIT_STREAMS = {"train": 1, "validation": 2}


def generator(seed: int, clip: int, stream: int, part: int = 0) -> np.random.Generator:
    """The generator of one `part` of a clip (0 for its plan, then one for each sound in it); all in [0, 2**64)."""
    key = np.array([seed, clip], dtype=np.uint64)
    # Philox counts up from the first word, so that different parts and streams never overlap.
    counter = np.array([0, 0, part, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
