"""Pytest plugin: `pytest -m gpu` imports only files with GPU tests, unless another is named on the command line.

So each worker starts sooner, and packages that only other tests need can be missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py":
        return None
    return None if "mark.gpu" in collection_path.read_text(encoding="utf-8") else True
