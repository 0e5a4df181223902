"""The LIBRARY argument of commands, and file names for a terminal."""

from __future__ import annotations

import argparse
import codecs
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slap_fast.commands.shared import CommandError

_DATABASE = "library.sqlite"  # slap_fast.library.database imports NumPy


def add_library_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="folder that `slap-fast index` wrote")


def library_or_url(text: str) -> Path | str:
    """Type of a LIBRARY argument that may also be the URL of a shared table, which a Path would change."""
    return text if "://" in text else Path(text)


def is_library(folder: Path) -> bool:
    return (folder / _DATABASE).is_file()


def check_library(library: Path) -> None:
    """Report a folder that is no library before anything heavy is imported.

    Raises:
        CommandError: there is no library.
    """
    if is_library(library):
        return
    if (library / "config.json").is_file():
        raise CommandError(
            f"{library}: this is a model, not a library; index recordings with it: slap-fast index LIBRARY --model "
            f"{library} FOLDER"
        )
    from slap_fast.library.database_file import how_to_make

    missing = "no library in this folder" if library.is_dir() else "no such folder"
    raise CommandError(f"{library}: {missing}; {how_to_make(library)}")


def printable(text: str) -> str:
    r"""A file name in one line that cannot control a terminal: control characters and bad bytes as `\n`, `\x1b`, ..."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def json_line(content: dict[str, Any]) -> str:
    r"""One line of JSON for stdout.

    Characters that control a terminal, and bytes of a path that are no text, are `\u` codes; where stdout is not UTF-8,
    as JSON has to be, so is all that is not ASCII.
    """
    line = json.dumps(content, ensure_ascii=codecs.lookup(_encoding()).name != "utf-8")
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in line)


def _encoding() -> str:
    return sys.stdout.encoding or "utf-8"  # None: of an io.StringIO in the place of stdout


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else json.dumps(letter)[1:-1]


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a header and rows as RFC 4180. Names are as they are, but on a terminal as `printable` has them."""
    writer = csv.writer(sys.stdout)
    shown = printable if sys.stdout.isatty() else str
    for row in (columns, *rows):
        writer.writerow([shown(value) if isinstance(value, str) else value for value in row])


def report_changed_names(names: Iterable[str]) -> int:
    """Name on stderr the recordings whose names stdout cannot hold as they are, in CSV; returns how many."""
    changed = 0
    for name in names:
        try:
            name.encode(_encoding())
        except UnicodeEncodeError:
            changed += 1
            problem = f"its name is no valid {_encoding()} text, and changed in the CSV; use --json"
            print(f"{printable(name)}: {problem}", file=sys.stderr)
    return changed
