"""Stage `ceilings`: measured peak rates of the GPU, of a memory copy and of matrix products."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_round.jobs import Job, job_parser, run_jobs
from benchmarks.harness.case import Run
from benchmarks.harness.inputs import normal
from benchmarks.harness.replay import capture
from benchmarks.harness.timing import default_timer

STAGE = "ceilings"
ROUNDS = 20


def main() -> int:
    options = job_parser(__doc__).parse_args()
    small, device = options.size != "paper", options.device
    side, count = (256, 1 << 20) if small else (8192, 1 << 30)
    jobs: list[Job] = [("copy", partial(_copy, count, device))]
    for dtype in (torch.bfloat16, torch.float32):
        jobs.append((f"product, {str(dtype).removeprefix('torch.')}", partial(_product, side, dtype, device)))
    return run_jobs(STAGE, jobs, options)


def _copy(count: int, device: str) -> dict[str, Any]:
    source = normal(0, count, device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(lambda: target.copy_(source), device)
    return {"bytes_per_second": 8 * count / seconds, "median_seconds": seconds}


def _product(side: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Random numbers, because with zeros a GPU uses less power and runs at a higher clock."""
    a, b = (normal(seed, side, side, device=device, dtype=dtype) for seed in range(2))
    out = torch.empty_like(a)
    seconds = _median_seconds(lambda: torch.mm(a, b, out=out), device)
    return {"flop_per_second": 2 * side**3 / seconds, "median_seconds": seconds}


def _median_seconds(step: Callable[[], object], device: str) -> float:
    timer = default_timer(device)
    step()
    if device == "cuda":
        step = capture([Run(step, dict)]).run
    timer(step, 1)
    return statistics.median(timer(step, 1) for _ in range(ROUNDS))


if __name__ == "__main__":
    sys.exit(main())
