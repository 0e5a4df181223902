"""Many small jobs in one process, of which none may end the others: not even by losing the GPU."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_round import lines

Job = tuple[str, Callable[[], dict[str, Any]]]


def arguments(description: str) -> argparse.ArgumentParser:
    """What every stage's process is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--size", default="paper", help="of `operations.SIZES`")
    parser.add_argument("--results", type=Path, required=True, help="file that takes a line of JSON a result")
    parser.add_argument("--first", type=int, default=0, help="job to begin with")
    parser.add_argument("--failed", action="store_true", help="an earlier job was wrong")
    return parser


def run_all(stage: str, jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Run the jobs, append a record each with what it returned or its error, and return the exit status.

    A process whose GPU answers no more is replaced by one that goes on with the next job.
    """
    failed = options.failed
    for index, (name, job) in list(enumerate(jobs))[options.first :]:
        start = time.perf_counter()
        try:
            record = {"ok": True, **job()}
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            record = {"ok": False, "reason": f"{type(error).__name__}: {first_line}"}
        record["seconds"] = time.perf_counter() - start
        failed |= not record["ok"]
        lost = not record["ok"] and not _device_answers()
        lines.append(options.results, stage=stage, job=name, **record, **({"lost_the_gpu": True} if lost else {}))
        if lost:
            os.execv(sys.executable, [*sys.orig_argv, "--first", str(index + 1), "--failed"])
    return int(failed)


def _device_answers() -> bool:
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
