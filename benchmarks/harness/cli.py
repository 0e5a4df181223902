"""The command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.harness.case import Case, Peer, Settings, benchmark_names, default_names, load_benchmark
from benchmarks.harness.measure import ERROR, FAILED, LEFT_OUT, DeviceLostError, measure_case, without_times
from benchmarks.harness.plot import plot_result
from benchmarks.harness.report import render, render_document
from benchmarks.harness.results import build_result, finite, load_result, result_path, save_result, with_earlier

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DEVICE_LOST = 3


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 1: a peer failed its check or raised, or the README is stale; 2: the command cannot be carried out;
    3: the GPU answers this process no more, and the same command with `--resume` goes on after the case that did it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"plot": _plot, "readme": _readme}
    try:
        if arguments and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        return _run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check, time and weigh peers side by side. Also: `plot` and `readme`, which draw from the results.",
    )
    everything, names = benchmark_names(), default_names()
    unnamed = f"all but {' and '.join(sorted(set(everything) - set(names)))}"
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(everything)}; {unnamed}, where none is named"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds: shows that all works")
    parser.add_argument(
        "--rounds", type=int, help="timed rounds (default: as many as --seconds allows, 5 to 100; fewer of minutes)"
    )
    parser.add_argument(
        "--seconds", type=float, default=Settings.seconds, help="for a case's rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--cases", action="append", metavar="TEXT", help="only cases whose name contains TEXT; may be repeated"
    )
    parser.add_argument(
        "--peers",
        action="append",
        metavar="TEXT",
        help="only baselines and peers whose name contains TEXT; the others are listed as left out; may be repeated",
    )
    parser.add_argument(
        "--add", action="store_true", help="keep cases of the last result that are not run now; same machine and commit"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="as --add, and run only what the last result lacks; a case that it died in is reported and not run again",
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="start no further case of a benchmark after so long"
    )
    parser.add_argument(
        "--lines", type=Path, metavar="FILE", help="also append each case to FILE as a line of JSON when it is done"
    )
    parser.add_argument("--cold-cache", action="store_true", help="sweep the caches before each step")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory and its child processes")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the JSON results (default: benchmarks/results)"
    )
    options = parser.parse_args(argv)
    for name in ("threads", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here")

    torch.set_num_threads(options.threads)
    settings = Settings(
        device=options.device,
        threads=options.threads,
        quick=options.quick,
        rounds=options.rounds or (3 if options.quick else None),
        seconds=options.seconds,
        budget=options.budget,
        cold_cache=options.cold_cache,
    )
    status = 0
    for name, module in [(name, load_benchmark(name)) for name in options.names or names]:
        found = _run_benchmark(name, module, settings, options)
        if found == DEVICE_LOST:
            return found
        status = max(status, found)
    return status


def _run_benchmark(name: str, module: ModuleType, settings: Settings, options: argparse.Namespace) -> int:
    measured: list[dict[str, Any]] = []
    cases = module.cases(settings)
    wanted = [_with_peers(case, options.peers) for case in _wanted(cases, options.cases)]
    result = build_result(name, module.TITLE, measured, settings)
    path = result_path(result, options.out)
    earlier = load_result(path) if (options.add or options.resume) and path.exists() else None
    order = [case.name for case in cases]
    died_in = None
    if earlier is not None:
        with_earlier(result, earlier, order)  # raises now rather than after hours
        if options.resume:
            died_in = earlier.get("in_progress")
            known = {case["name"] for case in earlier["cases"]}
            wanted = [case for case in wanted if case.name not in known]

    def save(**marks: str) -> None:
        whole = result if earlier is None else with_earlier(result, earlier, order)
        save_result(whole | marks, options.out)

    begun = time.monotonic()
    for case in wanted:
        print(f"{name}: {case.name} ...", file=sys.stderr, flush=True)
        lost = None
        if case.name == died_in:
            measured.append(without_times(case, ERROR, "the process died while it ran this case"))
        elif settings.budget is not None and time.monotonic() - begun > settings.budget:
            measured.append(without_times(case, LEFT_OUT, f"the budget of {settings.budget:g} s was used up"))
        else:
            save(in_progress=case.name)
            try:
                measured.append(measure_case(name, case, settings, memory=not options.no_memory))
            except DeviceLostError as error:
                lost = error
                measured.append(error.measured)
        # After each case: some run for hours.
        save()
        if options.lines is not None:
            _append_line(options.lines, result | {"cases": measured[-1:]})
        if lost is not None:
            print(f"python -m benchmarks: {lost}", file=sys.stderr)
            return DEVICE_LOST
    whole = load_result(path)
    print(f"\n{module.TITLE}\n\n{render(whole)}\n-> {path}")
    return 0 if _all_right(whole["cases"]) else 1


def _all_right(cases: Sequence[dict[str, Any]]) -> bool:
    return all(peer["status"] not in (FAILED, ERROR) for case in cases for peer in case["peers"])


def _append_line(path: Path, result: dict[str, Any]) -> None:
    """One write, so that lines of processes that share the file do not mix."""
    line = json.dumps({"result": finite(result)}, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _wanted(cases: Sequence[Case], texts: Sequence[str] | None) -> list[Case]:
    """Cases that a text is part of the name of, and those whose rates theirs are shares of; all without texts."""
    chosen = [case for case in cases if texts is None or any(text in case.name for text in texts)]
    if not chosen:
        raise ValueError(f"--cases {texts}: no case is named so; there are {', '.join(case.name for case in cases)}")
    names = {case.name for case in chosen} | {case.peak for case in chosen}
    return [case for case in cases if case.name in names]


def _with_peers(case: Case, texts: Sequence[str] | None) -> Case:
    """The case with the other peers listed as left out: what they would show may take hours."""

    def chosen(peer: Peer) -> bool:
        return texts is None or peer.name == case.baseline or any(text in peer.name for text in texts)

    left_out = "left out of this run by --peers"
    peers = [peer if chosen(peer) else replace(peer, unavailable=peer.unavailable or left_out) for peer in case.peers]
    return replace(case, peers=tuple(peers))


def _plot(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plot", description="Draw each result beside its JSON file."
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    folder = parser.parse_args(argv).out
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder} has no results to plot; run a benchmark first")
    for path in paths:
        result = load_result(path)
        if result["cases"]:
            plot_result(result, path.with_suffix(".png"))
            print(path.with_suffix(".png"))
    return 0


def _readme(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks readme",
        description="Redraw the tables of README.md, docs/*.md and benchmarks/results/README.md from the results.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is stale")
    parser.add_argument("--readme", type=Path, action="append", help="redraw this file instead; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args(argv)
    stale = False
    for path in options.readme or (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), RESULTS / "README.md"):
        text = path.read_text(encoding="utf-8")
        fresh = render_document(text, options.out)
        if fresh == text:
            continue
        if options.check:
            print(f"{path} is stale; run `python -m benchmarks readme`", file=sys.stderr)
            stale = True
        else:
            path.write_text(fresh, encoding="utf-8")
    return int(stale)
