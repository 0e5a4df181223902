"""Benchmark results: one JSON file per benchmark and device; tables and plots are drawn from these files.

    {"format": 1, "benchmark", "title", "date", "settings": {...}, "machine": {...}, "versions": {...},
     "cases": [{"name", "baseline", "tolerance", "work": {unit: amount}, "facts": {...}, "peak": case or null,
                "peers": [{"name", "status", "reason", "errors": {output: relative RMS error},
                           "seconds": [...], "time": {"q1", "median", "q3"}, "ratio": {"q1", "median", "q3"},
                           "rate": {unit: amount per second}, "work": {unit: amount} if it is not that of the case,
                           "eager": {"q1", "median", "q3"} or null, "replay": {"copies"} or {"reason"},
                           "memory": {"setup_bytes", "step_bytes", "kept_bytes", "working_bytes", "method"}
                                     or {"reason"}}]}]}

A benchmark without peers has no cases, but "figures": [{"name", "value", "bound": upper bound or null}], or a "table":
{"columns": [name], "rows": [[text, number or null]]}.

- Times are in seconds. `ratio` is the baseline's time divided by the peer's: above 1 if the peer is faster.
- A peer whose status is not "ok" has a reason, and no keys after `errors`.
- On a GPU, `seconds` are times of a CUDA graph replay, which runs the step on `copies` sets of inputs; `eager` is the
  step launched from Python. If the step cannot be captured, `replay` has the reason and `seconds` are eager times.
- While a case runs, "in_progress" is its name.
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
# Cases of one result may differ in these.
_MAY_DIFFER = ("load_average", "rounds", "seconds", "budget")
OURS = ("slap-fast", "packed")  # prefixes of the names of our own peers


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


def merge_earlier(result: dict[str, Any], earlier: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """`result` with the cases of `earlier` that it lacks, so that a long benchmark can run in parts.

    Args:
        result: the current result.
        earlier: a result of the same benchmark.
        order: names of all cases of the benchmark.

    Raises:
        ValueError: the two differ in machine, versions or settings.
    """
    for part in ("machine", "versions", "settings"):
        new, old = result[part], earlier[part]
        differing = [name for name in sorted(new | old) if name not in _MAY_DIFFER and new.get(name) != old.get(name)]
        if differing:
            raise ValueError(
                f"--add: the earlier result of {earlier['date'][:10]} differs in {part}: {', '.join(differing)}; "
                "run all cases, or omit --add to replace it"
            )
    cases = {case["name"]: case for case in earlier["cases"] + result["cases"]}
    return result | {"cases": [cases[name] for name in order if name in cases]}


def is_ours(peer: str) -> bool:
    return peer.startswith(OURS)


def result_name(result: dict[str, Any]) -> str:
    """File name without suffix, which is also the name of the table in the documentation.

    A CPU without AVX-512 has results of its own, beside those of one that has it: ratios differ between the two.
    """
    settings = result["settings"]
    quick = "-quick" if settings["quick"] else ""
    cold = "-cold" if settings["cold_cache"] else ""
    isa = "-avx2" if settings["device"] == "cpu" and not quick and "avx512f" not in result["machine"]["isa"] else ""
    return f"{result['benchmark']}-{settings['device']}{isa}{cold}{quick}"


def result_path(result: dict[str, Any], folder: Path) -> Path:
    return folder / f"{result_name(result)}.json"


def save_result(result: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = result_path(result, folder)
    path.write_text(json.dumps(without_infinities(result), indent=1, allow_nan=False) + "\n")
    return path


def load_result(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        ValueError: the file is not a result of this format.
    """
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); run the benchmark again") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is not a benchmark result of format {FORMAT}; run the benchmark again")
    return result


def without_infinities(value: Any) -> Any:
    """Replace numbers that JSON does not have: an infinite error becomes the string "inf"."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_infinities(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
