"""`slap-fast index`: makes a sound library of recordings, and keeps it equal to what is on disk."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.library_arguments import check_library, is_library, printable
from slap_fast.commands.shared import (
    CommandError,
    add_quiet,
    check_model,
    clock,
    model_argument,
    positive,
    show_progress,
)
from slap_fast.errors import SlapFastError

if TYPE_CHECKING:
    from slap_fast.library.indexing.report import IndexReport
    from slap_fast.library.library import Library

HELP = "make or update a sound library: recordings that can be searched by text and sound"

_WATCH_SECONDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="folder of the library; a new one needs --model")
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        default=[],  # else argparse says that it is required
        help="folders (searched recursively), audio files, or prepared datasets to add; none: those of the library",
    )
    parser.add_argument(
        "--model",
        type=model_argument,
        help="folder of a trained model, such as runs/slap/model, or owner/name[@revision] on the Hugging Face hub",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")
    parser.add_argument(
        "--workers", type=_workers, help="processes that embed on a CPU; 0: this one (default: one for each core)"
    )
    parser.add_argument("--remove", metavar="PATH", action="append", default=[], help="forget a folder or file")
    parser.add_argument("--retry", action="store_true", help="try files again that failed and have not changed")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=positive,
        const=_WATCH_SECONDS,
        help=f"keep going: look for changes again every so many seconds (default {_WATCH_SECONDS}), until Ctrl-C",
    )
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if is_library(arguments.library):
        return _index(arguments)
    _check_new(arguments)
    from slap_fast.library.unused_library import remove_unused

    had_folder = arguments.library.is_dir()
    try:
        return _index(arguments)
    except BaseException:
        with suppress(SlapFastError, OSError):  # the error is the one that ended it
            remove_unused(arguments.library, keep_folder=had_folder)
        raise


def _index(arguments: argparse.Namespace) -> int:
    from slap_fast.library.indexing.report import IndexReport
    from slap_fast.library.library import Library

    library = Library(arguments.library, model=_model_name(arguments.model), device=arguments.device)
    with library, _terminable():
        if arguments.remove:
            removed = library.remove(*arguments.remove)
            print(f"{printable(str(library.path))}: removed {removed}")
            if not arguments.folders and arguments.watch is None:
                return 0
        report = IndexReport()
        options: dict[str, Any] = {
            "progress": show_progress(arguments),
            "workers": arguments.workers,
            "retry": arguments.retry,
            "report": report,
        }
        if arguments.watch is not None:
            return _watch(library, arguments, options)
        try:
            library.add(*arguments.folders, **options)
        except KeyboardInterrupt:
            _print_report(report, library)
            raise
        return _print_report(report, library)


def _watch(library: Library, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    """Returns when Ctrl-C or SIGTERM ends it, which is how it is meant to end; raises if the first update does not."""
    running = False

    def started(report: IndexReport) -> None:
        nonlocal running
        running = True
        _print_report(report, library)
        _tell(f"looking for changes every {arguments.watch} s; Ctrl-C ends this")

    try:
        library.watch(*arguments.folders, seconds=arguments.watch, tell=_tell, warn=_warn, started=started, **options)
    except KeyboardInterrupt:
        if not running:
            _print_report(options["report"], library)
            raise
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Report invalid arguments before torch is loaded.

    Raises:
        CommandError: there is no library and no model, the model cannot be used, or a folder does not exist.
    """
    library: Path = arguments.library
    exists = is_library(library)
    if any(not name.strip() for name in (*arguments.folders, *arguments.remove)):
        raise CommandError("a FOLDER argument is empty; perhaps a shell variable without a value")
    if not exists and (library / "config.json").is_file():
        raise CommandError(f"{library}: this is a model; first name the library: slap-fast index LIBRARY --model MODEL")
    if not exists and arguments.model is None:
        check_library(library)
    if not exists and not arguments.folders:
        raise CommandError(f"{library}: a new library needs a FOLDER to index")
    if arguments.model is not None:
        check_model(arguments.model, arguments.device)
    for name in arguments.folders:
        if not os.path.lexists(name):
            raise CommandError(f"{printable(name)}: no such file or folder")


def _check_new(arguments: argparse.Namespace) -> None:
    """Report what keeps a new library from being made, before the model is loaded, which takes longer than this.

    Raises:
        LibraryError: its folder has other files, or a folder to index has no audio.
    """
    from slap_fast.library.indexing.sources import scan_with_new
    from slap_fast.library.library import check_new_library

    check_new_library(arguments.library)
    scan_with_new([], [os.path.abspath(name) for name in arguments.folders], os.path.abspath(arguments.library))


def _model_name(model: Path | None) -> str | None:
    return None if model is None else str(model)


def _workers(text: str) -> int:
    """Argument type: 0 or more."""
    return 0 if text == "0" else positive(text)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends an update as Ctrl-C does: what is embedded is stored first."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_report(report: IndexReport, library: Library) -> int:
    """Print the summary, and failures to stderr; returns the exit code, 1 if there are any."""
    for failure in report.failed:
        print(f"failed {printable(str(failure))}", file=sys.stderr)
    counts = [
        (f"{report.new} new", True),
        (f"{report.changed} changed", report.changed),
        (f"{report.renamed} renamed", report.renamed),
        (f"{report.copied} {'copy' if report.copied == 1 else 'copies'}", report.copied),
        (f"{report.dropped} dropped", report.dropped),
        (f"{report.dropped_unread} dropped that had failed or were in part", report.dropped_unread),
        (f"{report.touched} with another time", report.touched),
        (f"{report.unchanged} unchanged", report.unchanged),
        (f"{len(report.failed)} failed", report.failed),
    ]
    print(f"{printable(str(library.path))}: {', '.join(text for text, shown in counts if shown)}", flush=True)
    if report.ignored:
        kinds = ", ".join(_ignored(count, kind) for kind, count in sorted(report.ignored.items()))
        print(f"left out: {kinds}")
    for kept in report.kept:
        whole = "" if kept.declared is None else f" of {clock(kept.declared)}"
        print(f"kept the first {clock(kept.seconds)}{whole}: {printable(kept.name)}")
    if report.interrupted:
        print("the same command goes on from here")
    return 1 if report.failed else 0


_IGNORED = {
    "not_audio": ("other file", "other files"),
    "hidden": ("hidden", "hidden"),
    "dataset_folder": (
        "prepared dataset in a folder (name it to index it)",
        "prepared datasets in folders (name them to index them)",
    ),
    "same_folder": ("link to a folder that is read already", "links to folders that are read already"),
    "same_file": ("link to a file that is read already", "links to files that are read already"),
}


def _ignored(count: int, kind: str) -> str:
    one, several = _IGNORED.get(kind, (kind, kind))
    return f"{count} {one if count == 1 else several}"


def _tell(line: str) -> None:
    print(printable(line), flush=True)


def _warn(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
