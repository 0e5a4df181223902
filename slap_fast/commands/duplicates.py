"""`slap-fast duplicates`: lists recordings of a library that are the same or nearly the same."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from slap_fast.commands.library_arguments import (
    add_library_argument,
    check_library,
    json_line,
    print_csv,
    printable,
    report_changed_names,
)
from slap_fast.commands.shared import CommandError, add_quiet, print_rows

if TYPE_CHECKING:
    from slap_fast.library.duplicates import DuplicateGroup

HELP = "list recordings of a library that are the same or nearly the same"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_library_argument(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.98,
        help="least cosine similarity of near-duplicates (default 0.98)",
    )
    parser.add_argument("--identical", action="store_true", help="list files with the same content alone")
    parser.add_argument(
        "--length-ratio",
        type=float,
        default=1.25,
        metavar="R",
        help="near-duplicates are at most R times as long as each other (default 1.25)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object per group")
    output.add_argument("--csv", action="store_true", help="print CSV, one line per recording")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.threshold <= 1:
        raise CommandError(f"--threshold is {arguments.threshold:g}; it must be above 0 and at most 1")
    if not arguments.length_ratio >= 1:
        raise CommandError(f"--length-ratio is {arguments.length_ratio:g}; it must be at least 1")
    check_library(arguments.library)
    from slap_fast.library.duplicates import find_duplicates
    from slap_fast.library.library import Library
    from slap_fast.runtime.progress import progress_bar

    with Library(arguments.library) as library:
        total = len(library.recordings())
        hidden = arguments.quiet or arguments.identical
        with progress_bar(desc="comparing", unit=" recordings", total=total, disable=hidden, leave=False) as bar:
            groups = find_duplicates(
                library,
                threshold=None if arguments.identical else arguments.threshold,
                length_ratio=arguments.length_ratio,
                progress=bar.update,
            )
    changed = 0
    if arguments.json:
        for number, group in enumerate(groups, 1):
            print(json_line({"group": number, **group.to_json()}))
    elif arguments.csv:
        _print_csv(groups)
        changed = report_changed_names(copy.recording.name for group in groups for copy in group.copies)
    elif groups:
        print_rows(_rows(groups))
    copies = sum(len(group.copies) - 1 for group in groups)
    counted = f"of {total} recordings, {copies or 'none'} {'are copies' if copies > 1 else 'is a copy'} of another"
    print(f"{printable(str(arguments.library))}: {counted}", file=sys.stderr)
    return 0 if groups and not changed else 1


def _rows(groups: list[DuplicateGroup]) -> list[list[str]]:
    rows = [["group", "similarity", "seconds", "modified (UTC)", "", "recording"]]
    for number, group in enumerate(groups, 1):
        for copy in group.copies:
            is_original = copy.recording is group.original
            notes = [
                *(["oldest"] if is_original else []),
                *(["identical"] if copy.identical and not is_original else []),
                *(["longest"] if copy.recording is group.longest else []),
            ]
            rows.append(
                [
                    str(number),
                    f"{copy.similarity:.4f}",
                    f"{copy.recording.seconds:.2f}",
                    f"{copy.modified:%Y-%m-%d %H:%M}",
                    ", ".join(notes),
                    printable(copy.recording.name),
                ]
            )
    return rows


def _print_csv(groups: list[DuplicateGroup]) -> None:
    columns = ("path", "member", "seconds", "size", "modified", "similarity", "identical", "oldest", "longest")
    rows = ((number, row) for number, group in enumerate(groups, 1) for row in group.to_json()["recordings"])
    print_csv(("group", *columns), ([number, *(row[column] for column in columns)] for number, row in rows))
