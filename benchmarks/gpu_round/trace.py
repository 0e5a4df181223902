"""Stage `trace`: profiles a training step. Writes a table of kernels and a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import gzip
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_round.jobs import job_parser, run_jobs
from benchmarks.harness.case import Settings
from benchmarks.training_step import PACKED, set_up, workload_to_trace

STAGE = "trace"
STEPS = 2
ROWS = 60


def main() -> int:
    parser = job_parser(__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="file to write, .json.gz")
    options = parser.parse_args()
    settings = Settings(device=options.device, quick=options.size != "paper")
    return run_jobs(STAGE, [("packed", partial(_trace, settings, options.trace))], options)


def _trace(settings: Settings, path: Path) -> dict[str, Any]:
    on_gpu = settings.device == "cuda"
    workload = workload_to_trace(settings)
    step = set_up(workload, PACKED).step
    for _ in range(3):
        step()

    def wait() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    start = wait()
    step()
    launched = time.perf_counter()
    seconds = wait() - start
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
        wait()
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return {
        "clips": len(workload.durations),
        "step_seconds": seconds,
        "python_seconds": launched - start,  # until the last launch; if it is the whole step, Python is the bottleneck
        **_kernels(profiler, on_gpu),
    }


def _kernels(profiler: profile, on_gpu: bool) -> dict[str, Any]:
    """Per step: the slowest kernels (on a CPU: operations), the time of all kernels, and their number."""
    found = []
    for event in profiler.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own and (not on_gpu or event.device_type == DeviceType.CUDA):
            found.append({"name": event.key[:120], "calls": event.count / STEPS, "seconds": own * 1e-6 / STEPS})
    found.sort(key=lambda row: -row["seconds"])
    return {"kernels": found[:ROWS], "kernel_seconds": sum(row["seconds"] for row in found), "kinds": len(found)}


if __name__ == "__main__":
    sys.exit(main())
