"""Three jobs, the second of which causes a simulated sticky CUDA error. Run by test_gpu_round.py."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.gpu_round import jobs


def _illegal_access() -> dict[str, Any]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")


if __name__ == "__main__":
    jobs.cuda_responds = lambda: False
    options = jobs.job_parser("").parse_args()
    sys.exit(jobs.run_jobs("losing", [("first", dict), ("illegal access", _illegal_access), ("last", dict)], options))
