"""A model in a folder, and audio files, for tests of indexing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slap_fast.library.library import Library

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(empty_library: Path) -> Path:
    return empty_library.parent / "model"


@pytest.fixture
def library(tmp_path: Path, empty_library: Path) -> Library:
    return Library(shutil.copytree(empty_library, tmp_path / "library"))


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    return folder


@pytest.fixture
def write(sounds: Path) -> Write:
    """Writes noise below `sounds`: name, seconds and seed to the path."""
    import soundfile  # not at the top: tests for GPUs are collected without it

    def write(name: str, seconds: float = 1.0, seed: int = 0) -> Path:
        path = sounds / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 16_000))
        with open(path, "wb") as file:  # soundfile takes no names that are not UTF-8
            soundfile.write(file, noise, 16_000, format="WAV")
        return path

    return write
