"""`slap-fast compare`: a table and plots of several training runs."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from slap_fast.commands.shared import print_rows
from slap_fast.errors import MissingExtraError

HELP = "compare training runs: losses, scores, speed, memory and settings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="output folders of training")
    parser.add_argument("--out", type=Path, help="folder for compare.json, .csv and .md, losses.png and scores.png")
    parser.add_argument("--no-plots", action="store_true", help="no plots in --out")
    parser.add_argument("--json", action="store_true", help="print compare.json instead of tables")


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.evaluation.comparison.run import read_runs
    from slap_fast.evaluation.comparison.table import (
        cells,
        comparison_rows,
        setting_rows,
        to_csv,
        to_json,
        to_markdown,
    )

    plots = arguments.out is not None and not arguments.no_plots
    if plots and find_spec("matplotlib") is None:
        raise MissingExtraError("plots need matplotlib: pip install matplotlib, or pass --no-plots")
    runs = read_runs(arguments.runs)
    rows, settings = comparison_rows(runs), setting_rows(runs)
    content = json.dumps(to_json(runs, rows, settings), indent=2, ensure_ascii=False) + "\n"
    written: list[Path] = []
    if arguments.out is not None:
        from slap_fast.runtime.durable_files import replace_text

        arguments.out.mkdir(parents=True, exist_ok=True)
        tables = [("Runs", rows), *([("Settings that differ", settings)] if settings else [])]
        for suffix, text in (
            ("json", content),
            ("csv", to_csv([*rows, *settings], runs)),
            ("md", to_markdown(tables, runs)),
        ):
            written.append(arguments.out / f"compare.{suffix}")
            replace_text(written[-1], text)
    if plots:
        from slap_fast.evaluation.comparison.plots import plot_losses_of, plot_scores_of

        for name, plot in (("losses.png", plot_losses_of), ("scores.png", plot_scores_of)):
            if plot(runs, arguments.out / name):
                written.append(arguments.out / name)
    for one in runs:
        for note in one.notes:
            print(note, file=sys.stderr)
    if arguments.json:
        print(content, end="")
        return 0
    print_rows(cells(rows, runs))
    if settings:
        print("\nsettings that differ")
        print_rows(cells(settings, runs))
    for path in written:
        print(f"wrote {path}")
    return 0
