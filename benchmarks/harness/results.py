"""Results on disk: one JSON file a benchmark and device, from which tables and plots are drawn.

    {"format": 1, "benchmark", "title", "date", "settings": {...}, "machine": {...}, "versions": {...},
     "cases": [{"name", "baseline", "tolerance", "work": {unit: amount}, "facts": {...}, "peak": case or null,
                "peers": [{"name", "status", "reason", "errors": {output: relative RMS error},
                           "seconds": [...], "time": {"q1", "median", "q3"}, "ratio": {"q1", "median", "q3"},
                           "rate": {unit: amount a second},
                           "eager": {"q1", "median", "q3"} or null, "replay": {"copies"} or {"reason"},
                           "memory": {"setup_bytes", "step_bytes", "kept_bytes", "working_bytes", "method"}
                                     or {"reason"}}]}]}

A benchmark without peers has no cases, but "figures": [{"name", "value", "bound": what it must lie below, or null}],
or a "table": {"columns": [name], "rows": [[text, number or null]]}.
Times are in seconds; `ratio` is the baseline's time over the peer's, above 1 where the peer is faster. A peer whose
status is not "ok" has a reason and none of what follows `errors`. On a GPU `seconds` are replays of a CUDA graph that
runs the step on `copies` sets of inputs, and `eager` is the same step launched from Python; where a step cannot be
captured, `replay` has the reason and `seconds` are launched from Python. While a case runs, "in_progress" names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Settings
from benchmarks.harness.machine import describe_machine, describe_versions

FORMAT = 1
_MAY_DIFFER = ("load_average", "rounds", "seconds", "budget")
OURS = ("slap-fast", "packed")  # what the names of our own peers begin with


def build_result(benchmark: str, title: str, cases: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "benchmark": benchmark.rpartition(".")[2],
        "title": title,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "machine": describe_machine(settings.device),
        "versions": describe_versions(),
        "cases": cases,
    }


def with_earlier(result: dict[str, Any], earlier: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """`result` with the cases of `earlier` that it lacks, so that a benchmark of hours can be run in parts.

    Args:
        order: names of all the benchmark's cases.

    Raises:
        ValueError: the two were not measured alike.
    """
    for part in ("machine", "versions", "settings"):
        own, other = (_alike(value[part]) for value in (result, earlier))
        if own != other:
            differing = sorted(name for name in own | other if own.get(name) != other.get(name))
            raise ValueError(
                f"--add: the earlier result of {earlier['date'][:10]} differs in {part}: {', '.join(differing)}; "
                "run all cases, or leave --add out to replace it"
            )
    cases = {case["name"]: case for case in earlier["cases"] + result["cases"]}
    return result | {"cases": [cases[name] for name in order if name in cases]}


def _alike(circumstances: dict[str, Any]) -> dict[str, Any]:
    """Without what may differ between the parts of one measurement."""
    return {name: value for name, value in circumstances.items() if name not in _MAY_DIFFER}


def is_ours(peer: str) -> bool:
    return peer.startswith(OURS)


def result_name(result: dict[str, Any]) -> str:
    """File name without its suffix, which is also the table's name in the README. Quick runs have their own."""
    settings = result["settings"]
    quick = "-quick" if settings["quick"] else ""
    cold = "-cold" if settings["cold_cache"] else ""
    return f"{result['benchmark']}-{settings['device']}{cold}{quick}"


def result_path(result: dict[str, Any], folder: Path) -> Path:
    return folder / f"{result_name(result)}.json"


def save_result(result: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = result_path(result, folder)
    path.write_text(json.dumps(finite(result), indent=1, allow_nan=False) + "\n")
    return path


def load_result(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is not a result of this format."""
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the benchmark again") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a benchmark result of format {FORMAT}; run the benchmark again")
    return result


def finite(value: Any) -> Any:
    """JSON has no infinity: an error that is infinite is stored as the string "inf"."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
