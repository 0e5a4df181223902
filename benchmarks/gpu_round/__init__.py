"""All that a GPU can tell in ten minutes: `python -m benchmarks.gpu_round`.

Stages run one after the other, each in processes of its own with a time-out; what a stage finds it appends to
`results.jsonl` at once, and a stage that fails never stops the next. `benchmarks/README.md` says how to run it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import slap_fast

ROOT = Path(__file__).resolve().parents[2]

# Kernels are warmed while the package that maps them is still being installed.
if importlib.util.find_spec("slap_fast.kernels") is None:
    slap_fast.__path__.append(str(ROOT))
