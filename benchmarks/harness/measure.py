"""Measures a case: checks each peer against the reference, then measures time and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings, relative_errors
from benchmarks.harness.machine import cuda_responds
from benchmarks.harness.memory import measure_in_child, measure_on_gpu
from benchmarks.harness.replay import Replay, capture, input_copies
from benchmarks.harness.timing import default_timer, paired_ratio, quartiles, time_interleaved
from slap_fast.ops.dispatch import CannotServeError

OK = "ok"
FAILED = "failed check"
ERROR = "error"
OUT_OF_MEMORY = "out of memory"
UNAVAILABLE = "not available"
LEFT_OUT = "left out"

EAGER_ROUNDS = 5

Row = dict[str, Any]


class DeviceLostError(RuntimeError):
    """The GPU no longer responds to this process, so nothing else can be measured in it.

    Attributes:
        measured: the result of the case so far.
    """

    def __init__(self, measured: dict[str, Any], culprit: str) -> None:
        super().__init__(f"{measured['name']}: the GPU no longer responds after {culprit}")
        self.measured = measured


@dataclass
class _Checked:
    """A peer that passed its check."""

    run: Run
    seconds: float
    setup_bytes: int


def measure_case(benchmark: str, case: Case, settings: Settings, *, memory: bool = True) -> dict[str, Any]:
    """Measure one case. A peer with wrong outputs or an exception is not timed; its row has the reason.

    Args:
        benchmark: name of the benchmark, with which a child process loads the case.
        case: the case.
        settings: measurement settings.
        memory: also measure peak memory.

    Returns:
        The case in the format of `benchmarks.harness.results`.

    Raises:
        DeviceLostError: a peer caused a sticky CUDA error, which only a new process clears.
    """
    try:
        reference = case.reference()
    except Exception as error:
        return unmeasured_case(case, ERROR, f"the reference: {_status_and_reason(error)[1]}")
    rows, checked = _check_all(case, reference, settings, memory=memory)
    try:
        samples, eager = _time_all(case, checked, rows, settings)
    except Exception as error:
        status, reason = _status_and_reason(error)
        failed = unmeasured_case(case, status, f"while all peers were timed: {reason}")
        if not cuda_responds():
            raise DeviceLostError(failed, "the timing") from error
        return failed
    works = {name: {**case.work, **peer.run.work} for name, peer in checked.items()}
    checked.clear()
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()

    for name, seconds in samples.items():
        time = quartiles(seconds)
        rows[name] |= {
            "seconds": seconds,
            "time": time,
            "rate": {unit: amount / time["median"] for unit, amount in works[name].items()},
        }
        if works[name] != case.work:
            rows[name]["work"] = works[name]
        if case.baseline in samples:
            rows[name]["ratio"] = paired_ratio(samples[case.baseline], seconds)
        if name in eager:
            rows[name]["eager"] = quartiles(eager[name])
        if memory and settings.device == "cpu":
            rows[name]["memory"] = measure_in_child(benchmark, case.name, name, settings)
    return _case_record(case, rows)


def unmeasured_case(case: Case, status: str, reason: str) -> dict[str, Any]:
    """The result of a case of which no peer was measured."""
    return _case_record(
        case, {peer.name: {"name": peer.name, "status": status, "reason": reason} for peer in case.peers}
    )


def _case_record(case: Case, rows: Mapping[str, Row]) -> dict[str, Any]:
    return {
        "name": case.name,
        "baseline": case.baseline,
        "tolerance": case.tolerance,
        "work": dict(case.work),
        "facts": dict(case.facts),
        "peak": case.peak,
        "peers": [rows[peer.name] for peer in case.peers],
    }


def _check_all(
    case: Case, reference: Outputs, settings: Settings, *, memory: bool
) -> tuple[dict[str, Row], dict[str, _Checked]]:
    """Check every peer; returns the rows of all, and the peers that passed."""
    rows: dict[str, Row] = {}
    checked: dict[str, _Checked] = {}
    for peer in case.peers:
        rows[peer.name], passed = _check(peer, reference, case.tolerance, settings, memory=memory)
        if passed is not None:
            checked[peer.name] = passed
        elif rows[peer.name]["status"] == ERROR and not cuda_responds():
            reason = f"not run: the GPU no longer responds after {peer.name}"
            not_run = [p.name for p in case.peers if p.name not in rows or p.name in checked]
            rows |= {name: {"name": name, "status": ERROR, "reason": reason} for name in not_run}
            raise DeviceLostError(_case_record(case, rows), peer.name)
    return rows, checked


def _check(
    peer: Peer, reference: Outputs, tolerance: float, settings: Settings, *, memory: bool
) -> tuple[Row, _Checked | None]:
    """Set up and check a peer; returns its row, and the peer if it passed."""
    row: Row = {"name": peer.name}
    if peer.unavailable is not None:
        return row | {"status": UNAVAILABLE, "reason": peer.unavailable}, None
    timer = default_timer(settings.device)
    on_gpu = settings.device == "cuda"
    try:
        before = torch.cuda.memory_allocated() if on_gpu else 0
        run = peer.setup()
        setup_bytes = torch.cuda.memory_allocated() - before if on_gpu else 0
        outputs: dict[str, Tensor] = {}
        seconds = timer(lambda: outputs.update(run.outputs()), 1)
        row["errors"] = errors = relative_errors(outputs, reference)
        outputs.clear()
        worst = max(errors, key=errors.__getitem__)
        if errors[worst] > tolerance:
            reason = f"{worst} is off by {errors[worst]:.2e} (relative RMS error; at most {tolerance:.0e} is allowed)"
            return row | {"status": FAILED, "reason": reason}, None
        if not run.outputs_run_step:  # an exception here concerns this peer alone, later the whole case
            seconds = timer(run.step, 1)
        if on_gpu and memory:
            row["memory"] = measure_on_gpu(run, setup_bytes)
    except CannotServeError as error:
        return row | {"status": UNAVAILABLE, "reason": str(error)}, None
    except Exception as error:
        status, reason = _status_and_reason(error)
        return row | {"status": status, "reason": reason}, None
    return row | {"status": OK, "reason": None}, _Checked(run, seconds, setup_bytes)


def _time_all(
    case: Case, checked: Mapping[str, _Checked], rows: Mapping[str, Row], settings: Settings
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times of all peers, and eager times of those that were timed by replay."""
    replays = _capture(case, checked, rows) if settings.device == "cuda" and case.replayable else {}
    samples = _time(checked, replays, settings)
    replayed = {name: peer for name, peer in checked.items() if name in replays}
    return samples, _time(replayed, {}, replace(settings, rounds=EAGER_ROUNDS))


def _capture(case: Case, checked: Mapping[str, _Checked], rows: Mapping[str, Row]) -> dict[str, Replay]:
    """CUDA graphs of the peers. If a step cannot be captured, its row gets the reason, and it is timed without."""
    setups = {peer.name: peer.setup for peer in case.peers}
    cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    replays = {}
    for name, found in checked.items():
        try:
            copies = input_copies(found.setup_bytes, cache_bytes)
            replays[name] = capture([found.run, *(setups[name]() for _ in range(copies - 1))])
            rows[name]["replay"] = {"copies": copies}
        except Exception as error:
            rows[name]["replay"] = {"reason": _status_and_reason(error)[1]}
    return replays


def _time(checked: Mapping[str, _Checked], replays: Mapping[str, Replay], settings: Settings) -> dict[str, list[float]]:
    """Times of a step in seconds, by replay for peers that have one."""
    steps: dict[str, Callable[[], object]] = {name: found.run.step for name, found in checked.items()}
    if not steps:
        return {}
    steps |= {name: replay.run for name, replay in replays.items()}
    known = {name: found.seconds for name, found in checked.items() if name not in replays}
    samples = time_interleaved(steps, settings, checked_seconds=known)
    return {
        name: [sample / replays[name].copies for sample in seconds] if name in replays else seconds
        for name, seconds in samples.items()
    }


def _status_and_reason(error: Exception) -> tuple[str, str]:
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY, first_line
    return ERROR, f"{type(error).__name__}: {first_line}"
