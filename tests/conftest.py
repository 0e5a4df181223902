"""What holds for every test: no network, no luck, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os

import hypothesis
import pytest

from slap_fast import cpu_runtime

cpu_runtime.settle()

import torch  # noqa: E402 - it reads what was just settled

# Before any test imports a library that reads it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

hypothesis.settings.register_profile("slap-fast", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("slap-fast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU"))
