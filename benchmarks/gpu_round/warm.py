"""Runs every kernel and variant once, so that no later stage waits for a compiler: one shard of several processes.

A memory checker runs it too, over the kernels that are the default.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_round.jobs import Job, arguments, run_all
from benchmarks.gpu_round.operations import SIZES, Operation, operations
from slap_fast.kernels import variants


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--stage", default="warm", help="under which the results are filed")
    parser.add_argument("--all", action="store_true", help="the native module's kernels too, and no variants")
    options = parser.parse_args()
    jobs: list[Job] = [
        (operation.label(choice), partial(_compile, operation, choice, options.device))
        for operation in operations(SIZES[options.size], options.device)
        if options.all or operation.op != "log_mel"  # no kernel of Triton's, and its module is being built meanwhile
        for choice in ([{}] if options.all else operation.variants(options.device))
    ]
    return run_all(options.stage, jobs[options.shard :: options.shards], options)


def _compile(operation: Operation, choice: dict[str, str], device: str) -> dict[str, Any]:
    with variants.use(**choice):
        operation.run(operation.backend(device))
    if device == "cuda":
        torch.cuda.synchronize()
    return {}


if __name__ == "__main__":
    sys.exit(main())
