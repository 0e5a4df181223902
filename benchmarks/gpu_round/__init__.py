"""GPU round: all tests and benchmarks that need a GPU, in at most ten minutes. `python -m benchmarks.gpu_round`.

Stages run one after the other, each in its own processes with a timeout. Each result is appended to `results.jsonl` at
once, and a failed stage does not stop the next one. See `benchmarks/README.md`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import slap_fast

ROOT = Path(__file__).resolve().parents[2]

# The build stage compiles Triton kernels while it installs the package, which maps `kernels/` to `slap_fast.kernels`.
if importlib.util.find_spec("slap_fast.kernels") is None:
    slap_fast.__path__.append(str(ROOT))
