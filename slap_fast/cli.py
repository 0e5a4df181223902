"""`slap-fast`: a command for each task; `COMMANDS` lists them.

Results go to stdout; progress, skipped clips and errors to stderr. Exit codes: 0 success; 1 success, but clips were
skipped and are listed; 2 an error in the arguments or the input, in one line; 70 a bug, with its traceback; 130
interrupted; 141 stdout was closed by its reader.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from slap_fast import __version__
from slap_fast.errors import SlapFastError, one_line
from slap_fast.runtime.cpu import configure_cpu_environment

BUG = 70  # EX_SOFTWARE of sysexits.h; 1, Python's own, means skipped clips here

COMMANDS = (
    "prepare",
    "plan",
    "train",
    "export",
    "evaluate",
    "probe",
    "compare",
    "embed",
    "index",
    "search",
    "locate",
    "caption",
    "duplicates",
    "cluster",
    "app",
    "publish",
    "info",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    configure_cpu_environment()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may not be valid UTF-8, and the terminal may use another encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    # Importing the modules of all commands takes 0.2 s, a fifth of the time in which a search answers.
    parser = build_parser([name for name in argv[:1] if name in COMMANDS] or COMMANDS)
    arguments = parser.parse_args(argv)
    if getattr(arguments, "quiet", False):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of downloads of models; read at import
    try:
        code = _command(arguments.command).run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("slap-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Otherwise the buffered rest fails again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if not is_user_error(error):
            traceback.print_exc()
            print(f"slap-fast {arguments.command}: this is a bug of slap-fast; please report it", file=sys.stderr)
            return BUG
        print(f"slap-fast {arguments.command}: {describe(error)}", file=sys.stderr)
        return 2
    return code


def build_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of these commands."""
    parser = argparse.ArgumentParser(
        prog="slap-fast", description="SLAP: Scalable Language-Audio Pretraining with variable-duration audio."
    )
    parser.add_argument("--version", action="version", version=f"slap-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser)
    for name in names:
        command = _command(name)
        description = f"{command.HELP[:1].upper()}{command.HELP[1:]}."
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=description))
    return parser


def _command(name: str) -> Any:
    return importlib.import_module(f"slap_fast.commands.{name}")


class _CommandParser(argparse.ArgumentParser):
    """Takes positional arguments also after options: before Python 3.12, an optional one is refused there."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inside:  # `parse_known_intermixed_args` calls this method
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def is_user_error(error: BaseException) -> bool:
    """Errors of slap_fast, and of the system: a missing file, a full disk, no memory. All others are bugs."""
    # PyTorch's OutOfMemoryError is compared by name, so that torch need not be imported.
    return isinstance(error, SlapFastError | OSError | MemoryError) or type(error).__name__ == "OutOfMemoryError"


def describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return " ".join(f"out of memory {error}".split())
    return one_line(error, 400)


if __name__ == "__main__":
    sys.exit(main())
