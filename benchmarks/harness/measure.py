"""From a case to its rows: check, then time, then memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings, relative_errors
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
    """The GPU answers this process no more, so that nothing else can be measured in it.

    Attributes:
        measured: the case as far as it came.
    """

    def __init__(self, measured: dict[str, Any], culprit: str) -> None:
        super().__init__(f"{measured['name']}: the GPU answers no more after {culprit}")
        self.measured = measured


@dataclass
class _Checked:
    """A peer that was right and may be timed."""

    run: Run
    seconds: float
    setup_bytes: int


def measure_case(benchmark: str, case: Case, settings: Settings, *, memory: bool = True) -> dict[str, Any]:
    """Run one case. A peer whose outputs are off, or which raises, is never timed: its row says what went wrong.

    Args:
        benchmark: name under which a child process finds the case again.
        case: what to run.
        settings: how to run it.
        memory: also measure peak memory: on a CPU in one child process a peer, on a GPU here.

    Returns:
        The case as results store it: see `benchmarks.harness.results`.

    Raises:
        DeviceLostError: a peer left the GPU in an error that only a new process clears.
    """
    try:
        reference = case.reference()
    except Exception as error:
        return without_times(case, ERROR, f"the reference: {_what_went_wrong(error)[1]}")
    rows: dict[str, Row] = {}
    checked: dict[str, _Checked] = {}
    for peer in case.peers:
        rows[peer.name], found = _set_up_and_check(peer, reference, case.tolerance, settings, memory=memory)
        if found is not None:
            checked[peer.name] = found
        elif rows[peer.name]["status"] == ERROR and not _device_answers(settings.device):
            lost = f"not run: the GPU answers no more after {peer.name}"
            rows |= {
                p.name: {"name": p.name, "status": ERROR, "reason": lost} for p in case.peers if p.name not in rows
            }
            rows |= {name: {"name": name, "status": ERROR, "reason": lost} for name in checked}
            raise DeviceLostError(_as_stored(case, rows), peer.name)

    try:
        replays = _captured(case, checked, rows) if settings.device == "cuda" and case.replayable else {}
        samples = _timed(checked, replays, settings)
        eager = {name: found for name, found in checked.items() if name in replays}
        launched = _timed(eager, {}, replace(settings, rounds=EAGER_ROUNDS))
    except Exception as error:
        status, reason = _what_went_wrong(error)
        failed = without_times(case, status, f"while all peers were timed: {reason}")
        if not _device_answers(settings.device):
            raise DeviceLostError(failed, "the timing") from error
        return failed
    checked.clear()
    eager.clear()
    replays.clear()
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()

    for name, seconds in samples.items():
        time = quartiles(seconds)
        rows[name] |= {
            "seconds": seconds,
            "time": time,
            "rate": {unit: amount / time["median"] for unit, amount in case.work.items()},
        }
        if case.baseline in samples:
            rows[name]["ratio"] = paired_ratio(samples[case.baseline], seconds)
        if name in launched:
            rows[name]["eager"] = quartiles(launched[name])
        if memory and settings.device == "cpu":
            rows[name]["memory"] = measure_in_child(benchmark, case.name, name, settings)
    return _as_stored(case, rows)


def without_times(case: Case, status: str, reason: str) -> dict[str, Any]:
    """The case as results store it where none of its peers ran."""
    return _as_stored(case, {peer.name: {"name": peer.name, "status": status, "reason": reason} for peer in case.peers})


def _as_stored(case: Case, rows: Mapping[str, Row]) -> dict[str, Any]:
    return {
        "name": case.name,
        "baseline": case.baseline,
        "tolerance": case.tolerance,
        "work": dict(case.work),
        "facts": dict(case.facts),
        "peak": case.peak,
        "peers": [rows[peer.name] for peer in case.peers],
    }


def _set_up_and_check(
    peer: Peer, reference: Outputs, tolerance: float, settings: Settings, *, memory: bool
) -> tuple[Row, _Checked | None]:
    """The row so far; and what may be timed."""
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
            reason = f"{worst} is off by {errors[worst]:.2e} (relative RMS error; at most {tolerance:.0e} is right)"
            return row | {"status": FAILED, "reason": reason}, None
        if not run.outputs_run_step:  # what cannot run is found before anything is timed
            seconds = timer(run.step, 1)
        if on_gpu and memory:
            row["memory"] = measure_on_gpu(run, setup_bytes)
    except CannotServeError as error:
        return row | {"status": UNAVAILABLE, "reason": str(error)}, None
    except Exception as error:
        status, reason = _what_went_wrong(error)
        return row | {"status": status, "reason": reason}, None
    return row | {"status": OK, "reason": None}, _Checked(run, seconds, setup_bytes)


def _captured(case: Case, checked: Mapping[str, _Checked], rows: Mapping[str, Row]) -> dict[str, Replay]:
    """The peers' graphs; a row whose step cannot be captured says why, and is timed as Python launches it."""
    setups = {peer.name: peer.setup for peer in case.peers}
    cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    replays = {}
    for name, found in checked.items():
        try:
            copies = input_copies(found.setup_bytes, cache_bytes)
            replays[name] = capture([found.run, *(setups[name]() for _ in range(copies - 1))])
            rows[name]["replay"] = {"copies": copies}
        except Exception as error:
            rows[name]["replay"] = {"reason": _what_went_wrong(error)[1]}
    return replays


def _timed(
    checked: Mapping[str, _Checked], replays: Mapping[str, Replay], settings: Settings
) -> dict[str, list[float]]:
    """Seconds of a step, by replay for those that have one."""
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


def _device_answers(device: str) -> bool:
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _what_went_wrong(error: Exception) -> tuple[str, str]:
    """Status and reason of a row."""
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY, first_line
    return ERROR, f"{type(error).__name__}: {first_line}"
