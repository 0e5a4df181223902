"""Runs every Triton kernel and variant once, so that later stages do not compile. One process runs one shard.

With `--all`, runs the default kernels, under a memory checker.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_round.jobs import Job, job_parser, run_jobs
from benchmarks.gpu_round.operations import SIZES, Operation, operations
from slap_fast.kernels import variants


def main() -> int:
    parser = job_parser(__doc__)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--stage", default="warm", help="name of the stage in the results")
    parser.add_argument("--all", action="store_true", help="also kernels of the native module, but no variants")
    options = parser.parse_args()
    jobs: list[Job] = [
        (operation.label(choice), partial(_run, operation, choice, options.device))
        for operation in operations(SIZES[options.size], options.device)
        if options.all or operation.op != "log_mel"  # a kernel of the native module, which is built at the same time
        for choice in ([{}] if options.all else operation.variants(options.device))
    ]
    return run_jobs(options.stage, jobs[options.shard :: options.shards], options)


def _run(operation: Operation, choice: dict[str, str], device: str) -> dict[str, Any]:
    with variants.use(**choice):
        operation.run(operation.backend(device))
    if device == "cuda":
        torch.cuda.synchronize()
    return {}


if __name__ == "__main__":
    sys.exit(main())
