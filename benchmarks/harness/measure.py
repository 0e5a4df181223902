"""From a case to its rows: check, then time, then memory."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings, relative_errors
from benchmarks.harness.memory import measure_in_child
from benchmarks.harness.timing import default_timer, paired_ratio, quartiles, time_interleaved

OK = "ok"
FAILED = "failed check"
ERROR = "error"
OUT_OF_MEMORY = "out of memory"
UNAVAILABLE = "not available"

Row = dict[str, Any]


def measure_case(benchmark: str, case: Case, settings: Settings, *, memory: bool = True) -> dict[str, Any]:
    """Run one case. A peer whose outputs are off, or which raises, is never timed: its row says what went wrong.

    Args:
        benchmark: name under which a child process finds the case again.
        case: what to run.
        settings: how to run it.
        memory: also measure peak memory, in one child process a peer.

    Returns:
        The case as results store it: see `benchmarks.harness.results`.
    """
    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    checked_seconds: dict[str, float] = {}
    reference = case.reference()
    for peer in case.peers:
        rows[peer.name], checked = _set_up_and_check(peer, reference, case.tolerance, settings)
        if checked is not None:
            runs[peer.name], checked_seconds[peer.name] = checked

    steps = {name: run.step for name, run in runs.items()}
    samples = time_interleaved(steps, settings, checked_seconds=checked_seconds) if steps else {}
    steps.clear()
    runs.clear()
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()  # the children measure on the same device

    for name, seconds in samples.items():
        time = quartiles(seconds)
        rows[name] |= {
            "seconds": seconds,
            "time": time,
            "rate": {unit: amount / time["median"] for unit, amount in case.work.items()},
        }
        if case.baseline in samples:
            rows[name]["ratio"] = paired_ratio(samples[case.baseline], seconds)
        if memory:
            rows[name]["memory"] = measure_in_child(benchmark, case.name, name, settings)
    return {
        "name": case.name,
        "baseline": case.baseline,
        "tolerance": case.tolerance,
        "work": dict(case.work),
        "facts": dict(case.facts),
        "peak": case.peak,
        "peers": list(rows.values()),
    }


def _set_up_and_check(
    peer: Peer, reference: Outputs, tolerance: float, settings: Settings
) -> tuple[Row, tuple[Run, float] | None]:
    """The row so far; and the run with the seconds that its step took, if it may be timed."""
    row: Row = {"name": peer.name}
    if peer.unavailable is not None:
        return row | {"status": UNAVAILABLE, "reason": peer.unavailable}, None
    timer = default_timer(settings.device)
    try:
        run = peer.setup()
        outputs: dict[str, Tensor] = {}
        seconds = timer(lambda: outputs.update(run.outputs()), 1)
        row["errors"] = errors = relative_errors(outputs, reference)
        worst = max(errors, key=errors.__getitem__)
        if errors[worst] > tolerance:
            reason = f"{worst} is off by {errors[worst]:.2e} (relative RMS error; at most {tolerance:.0e} is right)"
            return row | {"status": FAILED, "reason": reason}, None
        if not run.outputs_take_step:  # what cannot run is found before anything is timed
            seconds = timer(run.step, 1)
    except torch.OutOfMemoryError as error:
        return row | {"status": OUT_OF_MEMORY, "reason": _first_line(error)}, None
    except Exception as error:
        return row | {"status": ERROR, "reason": f"{type(error).__name__}: {_first_line(error)}"}, None
    return row | {"status": OK, "reason": None}, (run, seconds)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
