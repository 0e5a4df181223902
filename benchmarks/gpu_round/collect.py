"""Converts the output of GPU rounds to results of the repository: one JSON file per benchmark, and a Markdown page.

    python -m benchmarks.gpu_round.collect FOLDER... [--into benchmarks/results/gpu]

With several folders, results of a later round replace those of an earlier one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_round import ROOT
from benchmarks.gpu_round.page import render_page
from benchmarks.gpu_round.reports import read_counters, read_tests
from benchmarks.gpu_round.stages import COUNTERS, TESTS
from benchmarks.harness import json_lines
from benchmarks.harness.results import result_name, save_result

INTO = ROOT / "benchmarks" / "results" / "gpu"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_round.collect", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="the --out folders of the rounds, the earliest first")
    parser.add_argument(
        "--into", type=Path, default=INTO, help="folder of the results (default: benchmarks/results/gpu)"
    )
    options = parser.parse_args(argv)
    missing = [folder for folder in options.folders if not (folder / "results.jsonl").is_file()]
    if missing:
        parser.error(f"{missing[0]} has no results.jsonl; name the --out folder of a round")
    found = merge(options.folders)
    if found["tiny"] and options.into == INTO:
        parser.error("a rehearsal is not a measurement; to see its page, name another folder with --into")
    options.into.mkdir(parents=True, exist_ok=True)
    for result in found["results"].values():
        print(save_result(result, options.into))
    record = {name: value for name, value in found.items() if name != "results"}
    path = options.into / "round.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = options.into / "README.md"
    page.write_text(render_page(record, list(found["results"].values())), encoding="utf-8")
    print(f"{path}\n{page}")
    return 0


def merge(folders: Sequence[Path]) -> dict[str, Any]:
    """Read and merge the output of rounds.

    Returns:
        `rounds`: date, machine and versions of each; `tiny`: whether any was a rehearsal; `stages`: exit status of each
        process; `jobs`: by stage; `results`: of benchmarks, by name; `counters` and `tests`: see `reports`.
    """
    rounds, stages = [], []
    jobs: dict[str, dict[str, Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    counters, tests = [], None
    for folder in folders:
        for record in json_lines.read(folder / "results.jsonl"):
            if "result" in record:
                _add_result(results, record["result"])
            elif record["stage"] == "round":
                rounds.append(record)
            elif record.get("event") == "end":
                stages.append(record | {"call": len(rounds)})
            else:
                jobs.setdefault(record["stage"], {})[record["job"]] = record
        if (folder / COUNTERS).is_file():
            counters = read_counters(folder / COUNTERS)
        if (folder / TESTS).is_file():
            tests = read_tests(folder / TESTS)
    return {
        "rounds": rounds,
        "tiny": any(record["tiny"] for record in rounds),
        "stages": stages,
        "jobs": {stage: list(found.values()) for stage, found in jobs.items()},
        "counters": counters,
        "tests": tests,
        "results": results,
    }


def _add_result(results: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    known = results.setdefault(result_name(result), result | {"cases": []})
    cases = {case["name"]: case for case in [*known["cases"], *result["cases"]]}
    results[result_name(result)] = result | {"cases": list(cases.values())}


if __name__ == "__main__":
    sys.exit(main())
