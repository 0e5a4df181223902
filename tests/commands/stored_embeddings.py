"""Reader of the files that `slap-fast embed` writes, as the documentation describes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and `[N, D]` float32 embeddings."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return archive["names"].tolist(), archive["embeddings"]
    if path.suffix == ".npy":
        with open(path, "rb") as file:
            embeddings = np.lib.format.read_array(file, allow_pickle=False)
            return json.loads(file.read()), embeddings
    with safetensors.safe_open(path, "np") as archive:
        return json.loads(archive.metadata()["names"]), archive.get_tensor("embeddings")
