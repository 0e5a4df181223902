"""Stage `counters`: one call of each main op, between the marks at which Nsight Compute starts and stops."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_round.jobs import Job, job_parser, run_jobs
from benchmarks.gpu_round.operations import SIZES, Operation, operations

STAGE = "counters"
OPERATIONS = (
    "attention, local, bfloat16",
    "attention, global, bfloat16",
    "contrastive, infonce, ids, float32",
    "prototypes, bfloat16",
    "swiglu, bfloat16",
    "log_mel, float32",
)
# Without matrix products of cuBLAS and small kernels that reduce and finish.
KERNELS = "regex:forward_kernel|backward_kernel|grad_q_kernel|grad_kv_kernel|statistics_kernel|gradient_kernel|log_mel"


def main() -> int:
    options = job_parser(__doc__).parse_args()
    named = {operation.name: operation for operation in operations(SIZES[options.size], options.device)}
    jobs: list[Job] = [(name, partial(_profile, named[name], options.device)) for name in OPERATIONS]
    return run_jobs(STAGE, jobs, options)


def _profile(operation: Operation, device: str) -> dict[str, Any]:
    backend = operation.backend(device)
    operation.run(backend)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    operation.run(backend)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return {}


if __name__ == "__main__":
    sys.exit(main())
