"""Keyed random generators: the randomness of a clip does not depend on other clips."""

from __future__ import annotations

import numpy as np

ORDER_STREAM = 0  # the order of the validation combinations
SPLIT_STREAMS = {"default": {"train": 1, "validation": 2}, "new": {"train": 3, "validation": 4}}


def generator(seed: int, clip: int, stream: int, part: int = 0) -> np.random.Generator:
    """The generator of a `part` of a clip: 0 scene, 1 noise, 2 and up tracks. All arguments are in [0, 2**64)."""
    key = np.array([seed, clip], dtype=np.uint64)
    # Philox increments the first word, so different parts and streams never overlap.
    counter = np.array([0, 0, part, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
