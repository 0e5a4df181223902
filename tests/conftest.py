"""Pytest configuration: no network, fixed hypothesis examples, GPU tests only if there is a GPU."""

from __future__ import annotations

import os

import hypothesis
import pytest

from slap_fast.runtime.cpu import configure_cpu_environment

configure_cpu_environment()

import torch  # noqa: E402 - reads the environment variables set above

from tests._lost_device import LostDevice  # noqa: E402
from tests._missing_packages import pytest_make_collect_report  # noqa: E402, F401 - a hook

# Before any test imports a library that reads it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

hypothesis.settings.register_profile("slap-fast", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("slap-fast")


@pytest.fixture(autouse=True)
def _no_java_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's Java program takes 10 s to start."""
    monkeypatch.setattr("slap_fast.evaluation.caption_metrics.java_metrics.java_command", lambda: None)


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
