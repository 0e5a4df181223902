"""`slap-fast search`: finds moments of a library by text or sound."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.library_arguments import (
    check_library,
    json_line,
    library_or_url,
    print_csv,
    printable,
    report_changed_names,
)
from slap_fast.commands.shared import CommandError, clock, positive, print_rows

if TYPE_CHECKING:
    from slap_fast.library.moment_export import ExportedMoment
    from slap_fast.library.moments import Moment

HELP = "find the moments of a library that sound like a text or a sound"

_CSV_COLUMNS = ("score", "start", "end", "seconds", "path", "member")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "library",
        metavar="LIBRARY",
        type=library_or_url,
        help="folder of `slap-fast index`, or URL of `slap-fast export --lancedb` (s3://, file://, ...)",
    )
    parser.add_argument(
        "text",
        metavar="TEXT",
        nargs="*",
        default=[],  # else argparse says that it is required
        help="what to look for, such as 'a dog barks'; of several, the mean counts",
    )
    parser.add_argument(
        "--audio",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="look for what sounds like this file, also together with TEXT; may be repeated",
    )
    parser.add_argument(
        "--not",
        action="append",
        dest="unlike",
        default=[],
        metavar="TEXT",
        help="what results must not sound like; may be repeated",
    )
    parser.add_argument(
        "--in",
        action="append",
        dest="folders",
        default=[],
        metavar="FOLDER",
        help="search only in this folder, file or prepared dataset; may be repeated",
    )
    parser.add_argument("--min-score", type=float, metavar="S", help="leave out results with a lower score")
    parser.add_argument("--min-seconds", type=float, metavar="S", help="search only in recordings at least this long")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="search only in recordings at most this long")
    parser.add_argument("--top", type=positive, default=10, help="largest number of results (default 10)")
    parser.add_argument(
        "--model", type=Path, help="with a URL: folder of its model, if it is elsewhere on this machine"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object per result")
    output.add_argument("--csv", action="store_true", help="print CSV with a header (RFC 4180)")
    output.add_argument(
        "--paths", action="store_true", help="print path, start and end in seconds, separated by tabs, for a player"
    )
    parser.add_argument(
        "-0", "--null", action="store_true", help="with --paths: end each field with a NUL, for names of any bytes"
    )
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="also cut the results out, as WAV in this folder")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if isinstance(arguments.library, str):
        return _search_shared(arguments)
    from slap_fast.library.library import Library

    with Library(arguments.library) as library:
        found = library.search(**_query(arguments))
        exported = library.export_moments(found, arguments.export) if arguments.export and found else []
        empty = not found and not len(library)
    left_out = _print(found, arguments)
    for moment in found:
        if not moment.exists and arguments.export is None:
            print(f"gone: {printable(moment.path)}; to drop it: slap-fast index {arguments.library}", file=sys.stderr)
    if not found:
        reason = "it has no recordings yet" if empty else "nothing found"
        print(f"{printable(str(arguments.library))}: {reason}", file=sys.stderr)
    all_exported = _report_export(exported, arguments.export)
    return 0 if found and not left_out and all_exported else 1


def _query(arguments: argparse.Namespace) -> dict[str, Any]:
    """What to look for and where, as a library and a shared table take it."""
    return {
        "text": arguments.text,
        "audio": arguments.audio or None,
        "unlike": arguments.unlike,
        "folders": arguments.folders,
        "min_score": arguments.min_score,
        "min_seconds": arguments.min_seconds,
        "max_seconds": arguments.max_seconds,
        "top": arguments.top,
    }


def _search_shared(arguments: argparse.Namespace) -> int:
    """Search a shared table; its recordings may be on other machines."""
    from slap_fast.library.shared_library import SharedLibrary

    found = SharedLibrary(arguments.library, model=arguments.model).search(**_query(arguments))
    left_out = _print(found, arguments)
    if not found:
        print(f"{printable(arguments.library)}: nothing found", file=sys.stderr)
    return 0 if found and not left_out else 1


def _check(arguments: argparse.Namespace) -> None:
    """Report invalid arguments before anything heavy is imported."""
    if isinstance(arguments.library, Path):
        check_library(arguments.library)
        if arguments.model is not None:
            raise CommandError("--model is for a URL; a library knows its model")
    elif arguments.export is not None:
        raise CommandError("--export needs the recordings; search the library itself, on their machine")
    if not arguments.text and not arguments.audio:
        raise CommandError("give a TEXT to look for, or --audio FILE")
    for name, texts in (("TEXT", arguments.text), ("--not", arguments.unlike)):
        for text in texts:
            if not text.strip():
                raise CommandError(f"a {name} is empty; describe a sound, such as 'a dog barks'")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise CommandError(f"{name} {text!r} is not valid UTF-8")
    for path in arguments.audio:
        if not path.is_file():
            raise CommandError(f"--audio {path}: no such file")
    if any(not folder for folder in arguments.folders):
        raise CommandError("--in is empty; perhaps a shell variable without a value")
    low, high = arguments.min_seconds, arguments.max_seconds
    for name, value in (("--min-score", arguments.min_score), ("--min-seconds", low), ("--max-seconds", high)):
        if value is not None and value != value:
            raise CommandError(f"{name} is not a number")
    if high is not None and high < (low or 0.0):
        raise CommandError(f"--max-seconds {high:g} is below " + (f"--min-seconds {low:g}" if low else "0"))
    if arguments.null and not arguments.paths:
        raise CommandError("-0 is for --paths")
    if arguments.export is not None and arguments.export.exists() and not arguments.export.is_dir():
        raise CommandError(f"--export {arguments.export}: it is a file; name a folder")


def _print(moments: Sequence[Moment], arguments: argparse.Namespace) -> int:
    """Print results in the chosen form; returns how many it cannot hold as they are, which are named."""
    if arguments.json:
        for moment in moments:
            print(json_line(asdict(moment)))
    elif arguments.csv:
        print_csv(_CSV_COLUMNS, ([getattr(moment, column) for column in _CSV_COLUMNS] for moment in moments))
        return report_changed_names(moment.name for moment in moments)
    elif arguments.paths:
        return _print_paths(moments, null=arguments.null)
    else:
        print_rows(
            [
                (f"{moment.score:.4f}", f"{clock(moment.start)}-{clock(moment.end)}", printable(moment.name))
                for moment in moments
            ]
        )
    return 0


def _print_paths(moments: Sequence[Moment], *, null: bool) -> int:
    left_out = 0
    for moment in moments:
        if moment.member:
            problem = "a clip of a dataset is no file that a player opens; cut it out with --export"
        elif not null and not moment.path.isprintable():
            problem = "its name does not fit a line of text; use -0"
        else:
            fields = (moment.path, f"{moment.start:.3f}", f"{moment.end:.3f}")
            text = "".join(f"{field}\0" for field in fields) if null else "\t".join(fields) + "\n"
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(text))
            continue
        left_out += 1
        print(f"skipped {printable(moment.name)}: {problem}", file=sys.stderr)
    return left_out


def _report_export(exported: Sequence[ExportedMoment], folder: Path | None) -> bool:
    """Say where the exported moments are, and which are missing; returns whether all are there."""
    if not exported:
        return True
    failed = [one for one in exported if one.path is None]
    for one in failed:
        print(f"skipped {printable(one.moment.name)}: {printable(one.reason)}", file=sys.stderr)
    print(f"{printable(str(folder))}: {len(exported) - len(failed)} of {len(exported)} moments", file=sys.stderr)
    return not failed
