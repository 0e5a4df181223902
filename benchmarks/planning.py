"""`python -m benchmarks.planning DATASET`: estimates of `slap-fast plan` for small runs, compared with those runs.

Each case trains the quickstart recipe for a few steps on DATASET (of `slap-fast prepare --synthetic`), on one or two
ranks of this machine's CPU, and plans it with the same arguments. Memory is the peak resident set size of a rank; the
step time is the median after the first two steps, without waiting for data. The ratios are reported without bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Settings
from benchmarks.harness.process_memory import status_bytes
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.results import build_result, save_result

STEPS = 7
WARMUP_STEPS = 2
COLUMNS = ["quickstart, trained on", "planned peak, GB", "resident, GB", "ratio", "planned step, s", "step, s", "ratio"]
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    **{
        f"{ranks} rank{'s' * (ranks > 1)}, stage {stage}": (ranks, (f"training.zero_stage={stage}",))
        for ranks in (1, 2)
        for stage in range(4)
    },
    "2 ranks, stage 1, fp32": (2, ("training.zero_stage=1", "training.precision=fp32")),
    "2 ranks, stage 1, micro-batches of 8": (2, ("training.zero_stage=1", "training.micro_batch_size=8")),
    "2 ranks, stage 3, micro-batches of 8": (2, ("training.zero_stage=3", "training.micro_batch_size=8")),
    "1 rank, stage 1, checkpointed": (1, ("training.zero_stage=1", "training.activation_checkpointing=true")),
    "1 rank, stage 1, wide, fp32": (
        1,
        (
            "training.zero_stage=1",
            "training.precision=fp32",
            "schedule.batch_size=8",
            "model.audio.width=512",
            "model.audio.mlp_width=2048",
            "model.text.width=512",
            "model.caption.width=512",
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--case", action="append", choices=CASES, help="run only this case (may be repeated)")
    parser.add_argument("--out", type=Path, help="folder to write the figures to, as a result of this benchmark")
    parser.add_argument("--rank", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.rank is not None:
        _train(options.rank)
        return 0
    rows: list[list[str | float]] = []
    print(" | ".join(COLUMNS))
    for name in options.case or CASES:
        ranks, arguments = CASES[name]
        arguments = ("recipe=quickstart", f"data.train={options.dataset}", *arguments)
        planned, measured = _planned(ranks, arguments), _measured(ranks, arguments, options.dataset)
        row: list[str | float] = [name]
        for quantity, unit in (("memory", 1e9), ("step", 1.0)):
            row += [planned[quantity] / unit, measured[quantity] / unit, planned[quantity] / measured[quantity]]
        rows.append(row)
        print(f"{name} | {' | '.join(f'{value:.3g}' for value in row[1:])}", flush=True)
    if options.out is not None:
        settings = Settings(device="cpu", threads=len(os.sched_getaffinity(0)))
        result = build_result("planning", "Plans against runs", [], settings)
        save_result(result | {"table": {"columns": COLUMNS, "rows": rows}}, options.out)
    return 0


def _planned(ranks: int, arguments: Sequence[str]) -> dict[str, float]:
    from slap_fast.planning.planner import make_plan
    from slap_fast.planning.request import parse_request

    plan = make_plan(parse_request([*arguments, f"devices={ranks}", "device=cpu"]))
    return {"memory": plan.asked.peak, "step": plan.asked.time.total}


def _measured(ranks: int, arguments: Sequence[str], dataset: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = ["benchmarks.planning", str(dataset), "--rank", *arguments]
        command += [f"training.output={folder}/run", f"training.stop_after={STEPS}", "training.log_every=1"]
        ranks_seen = run_ranks(command, ranks, timeout=600)
        return {
            "memory": max(rank["peak"] for rank in ranks_seen),
            "step": max(statistics.median(rank["seconds"][WARMUP_STEPS:]) for rank in ranks_seen),
        }


def _train(arguments: Sequence[str]) -> None:
    """Train as one rank; the last output line has its step times and its peak resident memory before the checkpoint."""
    from slap_fast.runtime.cpu import configure_cpu_environment

    configure_cpu_environment()
    from slap_fast import train
    from slap_fast.training.checkpoint.manager import CheckpointManager

    take_step = train.take_step
    seconds: list[float] = []

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        report = take_step(*arguments, **options)
        seconds.append(time.perf_counter() - began)
        return report

    def report(*_: object) -> None:
        print(json.dumps({"peak": status_bytes("VmHWM"), "seconds": seconds}), flush=True)

    # Time only the steps, and report instead of saving a checkpoint.
    setattr(train, "take_step", timed)  # noqa: B010
    setattr(CheckpointManager, "save", report)  # noqa: B010
    train.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
