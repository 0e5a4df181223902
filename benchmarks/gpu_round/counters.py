"""One call of six kernels' ops between the marks that Nsight Compute starts and stops at."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_round.jobs import Job, arguments, run_all
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
# Of all that these launch: not the products of cuBLAS, nor what folds and finishes.
KERNELS = "regex:forward_kernel|backward_kernel|grad_q_kernel|grad_kv_kernel|statistics_kernel|gradient_kernel|log_mel"


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    named = {operation.name: operation for operation in operations(SIZES[options.size], options.device)}
    jobs: list[Job] = [(name, partial(_mark, named[name], options.device)) for name in OPERATIONS]
    return run_all(STAGE, jobs, options)


def _mark(operation: Operation, device: str) -> dict[str, Any]:
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
