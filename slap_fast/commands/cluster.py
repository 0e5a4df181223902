"""`slap-fast cluster`: groups the recordings of a library by sound, names the groups, and draws a map."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.library_arguments import (
    add_library_argument,
    check_library,
    json_line,
    print_csv,
    printable,
    report_changed_names,
)
from slap_fast.commands.shared import CommandError, print_rows

if TYPE_CHECKING:
    import numpy as np

    from slap_fast.library.clusters import Clustering

HELP = "group the recordings of a library by sound, with names and a map"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_library_argument(parser)
    parser.add_argument(
        "--min-size", type=int, default=5, metavar="N", help="least number of recordings in a cluster (default 5)"
    )
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="names to choose from, one on each line (default: 354 sounds)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw a map of the recordings into this file")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object per cluster, with its recordings")
    output.add_argument(
        "--csv", action="store_true", help="print CSV, one line per recording, with positions on the map"
    )


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from slap_fast.library.clusters import find_clusters, read_vocabulary
    from slap_fast.library.library import Library

    vocabulary = None if arguments.vocabulary is None else read_vocabulary(arguments.vocabulary)
    with Library(arguments.library) as library:
        clustering = find_clusters(library, min_size=arguments.min_size, vocabulary=vocabulary)
    positions = clustering.positions() if arguments.csv or arguments.plot else None
    if arguments.plot:
        from slap_fast.library.cluster_map import plot_map

        assert positions is not None
        plot_map(clustering, positions, arguments.plot)
    changed = 0
    if arguments.json:
        _print_json(clustering)
    elif arguments.csv:
        assert positions is not None
        _print_csv(clustering, positions)
        changed = report_changed_names(recording.name for recording in clustering.recordings)
    elif clustering.clusters:
        print_rows(_rows(clustering))
    for line in _summary(clustering, arguments, positions):
        print(line, file=sys.stderr)
    return 0 if clustering.clusters and not changed else 1


def _check(arguments: argparse.Namespace) -> None:
    if arguments.min_size < 2:
        raise CommandError(f"--min-size is {arguments.min_size}; it must be at least 2")
    if arguments.plot and arguments.plot.suffix.lower() != ".png":
        raise CommandError(f"--plot {arguments.plot}: the map is a PNG file; give a name that ends with .png")
    if arguments.vocabulary and not arguments.vocabulary.is_file():
        raise CommandError(
            f"--vocabulary {arguments.vocabulary}: no such file; give a text file, one name on each line"
        )
    check_library(arguments.library)


def _summary(clustering: Clustering, arguments: argparse.Namespace, positions: np.ndarray | None) -> list[str]:
    total = len(clustering.recordings)
    alone = int((clustering.labels < 0).sum())
    if clustering.clusters:
        found = "1 cluster" if len(clustering.clusters) == 1 else f"{len(clustering.clusters)} clusters"
        lines = [f"{found} of {total - alone} recordings; {alone} unclustered"]
    elif total < max(arguments.min_size, 3):
        lines = [f"no clusters: too few recordings ({total}) for --min-size {arguments.min_size}"]
    else:
        lines = [f"no clusters among {total} recordings: none has --min-size {arguments.min_size}"]
    lines[0] = f"{printable(str(arguments.library))}: {lines[0]}"
    if clustering.fitted < total:
        lines.append(
            f"clustered a sample of {clustering.fitted} recordings; the other {total - clustering.fitted} joined the "
            "cluster of the nearest of these"
        )
    mapped = total if positions is None else sum(not math.isnan(x) for x, _ in positions.tolist())
    if mapped < total:
        without = " and have no position in the CSV" if arguments.csv else ""
        lines.append(f"the map has a sample of {mapped} recordings; the other {total - mapped} are not on it{without}")
    if arguments.plot:
        lines.append(f"wrote {printable(str(arguments.plot))}")
    return lines


def _rows(clustering: Clustering) -> list[list[str]]:
    rows = [["cluster", "recordings", "similarity", "name", "most typical recording"]]
    for cluster in clustering.clusters:
        typical = clustering.recordings[cluster.members[0]]
        rows.append(
            [
                str(cluster.number),
                str(len(cluster.members)),
                f"{cluster.score:.3f}",
                printable(cluster.name),
                printable(typical.name),
            ]
        )
    return rows


def _print_json(clustering: Clustering) -> None:
    for cluster in clustering.clusters:
        content = {
            "cluster": cluster.number,
            "name": cluster.name,
            "similarity": cluster.score,
            "recordings": [_entry(clustering, row) for row in cluster.members],
        }
        print(json_line(content))
    alone = [_entry(clustering, row) for row in (clustering.labels < 0).nonzero()[0].tolist()]
    print(json_line({"cluster": -1, "name": "unclustered", "recordings": alone}))


def _entry(clustering: Clustering, row: int) -> dict[str, object]:
    recording = clustering.recordings[row]
    probability = float(clustering.probabilities[row])
    return {"path": recording.path, "member": recording.member, "probability": probability}


def _print_csv(clustering: Clustering, positions: np.ndarray) -> None:
    rows = []
    for row, recording in enumerate(clustering.recordings):
        label = int(clustering.labels[row])
        place = ["" if math.isnan(value) else f"{value:.3f}" for value in positions[row].tolist()]
        probability = f"{float(clustering.probabilities[row]):.4f}"
        rows.append([recording.path, recording.member, label, clustering.name_of(row), probability, *place])
    print_csv(("path", "member", "cluster", "name", "probability", "x", "y"), rows)
