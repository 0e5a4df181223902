"""Runs many small jobs in one process. A job that fails, even with a sticky CUDA error, does not stop the others."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import json_lines
from benchmarks.harness.machine import cuda_responds

Job = tuple[str, Callable[[], dict[str, Any]]]


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of the processes of all stages."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--size", default="paper", help="key of `operations.SIZES`")
    parser.add_argument(
        "--results", type=Path, required=True, help="file to which one line of JSON per job is appended"
    )
    parser.add_argument("--first", type=int, default=0, help="index of the first job to run")
    parser.add_argument("--failed", action="store_true", help="an earlier job failed")
    return parser


def run_jobs(stage: str, jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Run the jobs and append a record for each, with its result or its error. Returns the exit status.

    After a sticky CUDA error, the process replaces itself with a new one that continues with the next job.
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
        lost = not record["ok"] and not cuda_responds()
        json_lines.append(options.results, stage=stage, job=name, **record, **({"lost_the_gpu": True} if lost else {}))
        if lost:
            os.execv(sys.executable, [*sys.orig_argv, "--first", str(index + 1), "--failed"])
    return int(failed)
