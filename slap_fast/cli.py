"""`slap-fast`: prepare, plan, train, export, evaluate, embed, search, caption, info.

Results go to stdout; progress, skips and errors to stderr. Exit codes: 0 done; 1 done, but some clips were skipped,
each named; 2 not done, because of what was asked or given, in one line; 70 a fault of the program, with its traceback;
130 interrupted; 141 the reader of stdout left.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence

from slap_fast import __version__
from slap_fast.commands import caption, embed, evaluate, export, info, plan, prepare, search, train
from slap_fast.commands.shared import one_line
from slap_fast.errors import SlapFastError
from slap_fast.runtime.cpu import configure_cpu_environment

FAULT = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 means something else here

COMMANDS = {
    "prepare": prepare,
    "plan": plan,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "embed": embed,
    "search": search,
    "caption": caption,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    configure_cpu_environment()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be UTF-8, nor the terminal.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        code = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("slap-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if not is_user_error(error):
            traceback.print_exc()
            print(f"slap-fast {arguments.command}: this is a fault of slap-fast; please report it", file=sys.stderr)
            return FAULT
        print(f"slap-fast {arguments.command}: {describe(error)}", file=sys.stderr)
        return 2
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slap-fast", description="SLAP: Scalable Language-Audio Pretraining with variable-duration audio."
    )
    parser.add_argument("--version", action="version", version=f"slap-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=f"{command.HELP.capitalize()}."))
    return parser


def is_user_error(error: BaseException) -> bool:
    """The system's refusals (a missing file, a full disk, no memory) and the errors slap_fast raises about its input.

    A bare ValueError is a fault of the program and keeps its traceback.
    """
    # PyTorch's out-of-memory errors are told by name: torch may not be loaded.
    refused = isinstance(error, OSError | MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return refused or isinstance(error, SlapFastError)


def describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory {one_line(error)}".strip()
    return one_line(error)


if __name__ == "__main__":
    sys.exit(main())
