"""Text tower of a library: embeds queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


class TextTower:
    """Embeds texts with the model of a library."""

    def __init__(self, library: Path, model: str) -> None:
        """
        Args:
            library: folder of the library.
            model: folder or hub id of its model, used if the library has no exported tower.
        """
        self._library = library
        self._name = model

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """`[N, D]` float32, unit length."""
        from slap_fast.models.slap import SLAP

        return SLAP.from_pretrained(self._name).encode_text(list(texts)).numpy()
