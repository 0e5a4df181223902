"""Command line of the benchmarks: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.harness import json_lines
from benchmarks.harness.case import Case, Peer, Settings, benchmark_names, default_names, load_benchmark
from benchmarks.harness.measure import ERROR, FAILED, LEFT_OUT, DeviceLostError, measure_case, unmeasured_case
from benchmarks.harness.plot import plot_result
from benchmarks.harness.report import render, render_document
from benchmarks.harness.results import build_result, load_result, merge_earlier, result_path, save_result

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DEVICE_LOST = 3  # exit status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status. 0: success; 1: a peer failed its check or raised, or the README is stale; 2: invalid arguments,
        or a file or package is missing; 3: the GPU no longer responds (the same command with `--resume` continues after
        the case that caused it).
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check peers, then measure their time and memory side by side. "
        "Two other commands draw from the results: `plot` and `readme`.",
    )
    every, default = benchmark_names(), default_names()
    excluded = " and ".join(sorted(set(every) - set(default)))
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"any of {', '.join(every)} (default: all but {excluded})"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and three rounds, to test that everything works"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help="timed rounds per case (default: as many as fit in --seconds, 5 to 100; fewer for steps of minutes)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=Settings.seconds,
        help="time for the timed rounds of a case (default: %(default)s)",
    )
    parser.add_argument(
        "--cases", action="append", metavar="TEXT", help="only cases with TEXT in their name; may be repeated"
    )
    parser.add_argument(
        "--peers",
        action="append",
        metavar="TEXT",
        help="only the baseline and peers with TEXT in their name; the table lists the others as left out; "
        "may be repeated",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the other cases of the last result, which must be of the same machine and commit",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="as --add, and run only cases that the last result lacks; "
        "a case during which the process died is recorded as an error",
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="start no further case of a benchmark after this time"
    )
    parser.add_argument(
        "--lines", type=Path, metavar="FILE", help="also append each finished case to FILE as a line of JSON"
    )
    parser.add_argument("--cold-cache", action="store_true", help="flush the caches before each timed step")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the JSON results (default: benchmarks/results)"
    )
    return parser


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    for name in ("threads", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device")

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
    worst = 0
    for name, module in [(name, load_benchmark(name)) for name in options.names or default_names()]:
        status = _run_benchmark(name, module, settings, options)
        if status == DEVICE_LOST:
            return status
        worst = max(worst, status)
    return worst


def _run_benchmark(name: str, module: ModuleType, settings: Settings, options: argparse.Namespace) -> int:
    cases = module.cases(settings)
    selected = [_select_peers(case, options.peers) for case in _select_cases(cases, options.cases)]
    measured: list[dict[str, Any]] = []
    result = build_result(name, module.TITLE, measured, settings)
    path = result_path(result, options.out)
    earlier = load_result(path) if (options.add or options.resume) and path.exists() else None
    order = [case.name for case in cases]
    died_in = None
    if earlier is not None:
        merge_earlier(result, earlier, order)  # if this raises, better now than after hours
        if options.resume:
            died_in = earlier.get("in_progress")
            done = {case["name"] for case in earlier["cases"]}
            selected = [case for case in selected if case.name not in done]

    def save(**extra: str) -> None:
        complete = result if earlier is None else merge_earlier(result, earlier, order)
        save_result(complete | extra, options.out)

    start = time.monotonic()
    for case in selected:
        print(f"{name}: {case.name} ...", file=sys.stderr, flush=True)
        lost = None
        if case.name == died_in:
            measured.append(unmeasured_case(case, ERROR, "the process died while it ran this case"))
        elif settings.budget is not None and time.monotonic() - start > settings.budget:
            measured.append(unmeasured_case(case, LEFT_OUT, f"the budget of {settings.budget:g} s was used up"))
        else:
            save(in_progress=case.name)
            try:
                measured.append(measure_case(name, case, settings, memory=not options.no_memory))
            except DeviceLostError as error:
                lost = error
                measured.append(error.measured)
        save()  # after each case: a benchmark may run for hours
        if options.lines is not None:
            json_lines.append(options.lines, result=result | {"cases": measured[-1:]})
        if lost is not None:
            print(f"python -m benchmarks: {lost}", file=sys.stderr)
            return DEVICE_LOST
    complete = load_result(path)
    print(f"\n{module.TITLE}\n\n{render(complete)}\n-> {path}")
    failed = any(peer["status"] in (FAILED, ERROR) for case in complete["cases"] for peer in case["peers"])
    return int(failed)


def _select_cases(cases: Sequence[Case], texts: Sequence[str] | None) -> list[Case]:
    """Cases with one of `texts` in their name, and the cases of their peak rates. All cases if `texts` is None."""
    chosen = [case for case in cases if texts is None or any(text in case.name for text in texts)]
    if not chosen:
        raise ValueError(f"--cases {texts}: no case matches; there are {', '.join(case.name for case in cases)}")
    names = {case.name for case in chosen} | {case.peak for case in chosen}
    return [case for case in cases if case.name in names]


def _select_peers(case: Case, texts: Sequence[str] | None) -> Case:
    """The case with all peers but the baseline and those with one of `texts` in their name marked as left out."""

    def chosen(peer: Peer) -> bool:
        return texts is None or peer.name == case.baseline or any(text in peer.name for text in texts)

    left_out = "left out of this run by --peers"
    peers = [peer if chosen(peer) else replace(peer, unavailable=peer.unavailable or left_out) for peer in case.peers]
    return replace(case, peers=tuple(peers))


def _plot(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plot", description="Draw each result next to its JSON file."
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
        description="Update the tables of README.md, docs/*.md and benchmarks/results/README.md from the results.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a table is stale")
    parser.add_argument("--readme", type=Path, action="append", help="update this file instead; may be repeated")
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
