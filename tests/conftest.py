"""Pytest configuration: no network, fixed hypothesis examples, GPU tests only if there is a GPU."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import hypothesis
import pytest

from slap_fast.runtime.cpu import configure_cpu_environment

configure_cpu_environment()

import torch  # noqa: E402 - reads the environment variables set above

from tests._gpu_files import pytest_ignore_collect  # noqa: E402, F401 - a hook
from tests._lost_device import LostDevice  # noqa: E402
from tests.made_once import made_once  # noqa: E402

# Before any test imports a library that reads it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

hypothesis.settings.register_profile("slap-fast", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("slap-fast")


@pytest.fixture(autouse=True)
def _no_java_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's Java program takes 10 s to start."""
    monkeypatch.setattr("slap_fast.evaluation.caption_metrics.java_metrics.java_command", lambda: None)


@pytest.fixture(scope="session")
def empty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library without recordings, but with its text tower, whose export takes longer than most tests.

    Tests copy it before they open it, because SQLite has files beside that of an open database, and other workers copy
    it, too. The name of its folder is not UTF-8. `model` beside it is its model, `tiny_slap(layers=1)`.
    """
    return made_once(tmp_path_factory, "library of a tiny model", _make_empty_library) / os.fsdecode(b"sounds \xff")


def _make_empty_library(folder: Path) -> None:
    # Not at the top: tests for GPUs are collected without packages that these need.
    import numpy as np
    import soundfile

    from slap_fast.library.library import Library
    from slap_fast.library.text_tower import FOLDER_NAME, has_text_tower
    from tests.models.saved import tiny_slap

    tiny_slap(layers=1).save_pretrained(folder / "model")
    soundfile.write(folder / "noise.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    indexed, empty = (Path(os.fsdecode(os.fsencode(folder / name) + b" \xff")) for name in ("indexed", "sounds"))
    with Library(indexed, model=folder / "model") as library:
        library.add(folder / "noise.wav", workers=0)
    assert has_text_tower(indexed)
    assert not [entry for entry in indexed.iterdir() if entry.name.startswith(".")]
    Library(empty, model=folder / "model").close()
    shutil.copytree(indexed / FOLDER_NAME, empty / FOLDER_NAME)


_BYTES_PER_WORKER = 4 << 30  # GPU memory: a CUDA context and the largest test


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LostDevice())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With `-m gpu -n auto`: as many workers as cores, but only as many as fit in GPU memory."""
    if config.option.markexpr != "gpu" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(len(os.sched_getaffinity(0)), free // _BYTES_PER_WORKER))


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_in_modules() -> None:
    """Collections of garbage leave out what imports made: a million objects, which take a second each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests first (`--no-loadscope-reorder` keeps the order): if one starts last, a single worker runs
    # it for minutes while the others are idle.
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU"))
