"""Runs the test modules in interpreted/, which compare kernels with the oracles without a GPU, in another process.

Triton decides when a kernel is defined whether it is compiled or interpreted, so one process cannot do both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
MODULES = sorted(map(str, Path(__file__).with_name("interpreted").glob("*.py")))


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *MODULES],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},  # its tensors are small
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
