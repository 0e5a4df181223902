"""Three jobs, of which the second loses a GPU that is made up: run by test_gpu_round.py."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.gpu_round import jobs


def _wild() -> dict[str, Any]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")


if __name__ == "__main__":
    jobs._device_answers = lambda: False
    options = jobs.arguments("").parse_args()
    sys.exit(jobs.run_all("losing", [("first", dict), ("wild", _wild), ("last", dict)], options))
