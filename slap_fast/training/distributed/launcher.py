"""Launcher of a rank (torchrun, `deepspeed`): stops the rank when it dies, and receives the rank's failure."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

LAUNCHERS = ("torchrun", "deepspeed")
MODULES = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
)


def watch_launcher(timeout: float) -> None:
    """End this process when its launcher dies, so that no rank outlives the launcher.

    The rank receives SIGTERM: once training has begun, the ranks agree to stop at the end of a step and save. A rank
    that still runs `timeout` seconds later is killed.
    """
    if not hasattr(os, "pidfd_open"):
        return  # not Linux
    launchers = find_launchers(os.getpid())
    if "TORCHELASTIC_RUN_ID" in os.environ and not launchers:
        _end("the launcher died before this rank had started", timeout)
    watched = select.poll()
    for launcher in launchers:
        try:
            watched.register(os.pidfd_open(launcher), select.POLLIN)
        except ProcessLookupError:
            _end(f"the launcher, process {launcher}, died before this rank had started", timeout)
    if launchers:
        threading.Thread(target=_wait_for_death, args=(watched, timeout), name="launcher watch", daemon=True).start()


def find_launchers(pid: int) -> list[int]:
    """Process ids of the ancestors of a process that are launchers, nearest first; `deepspeed` has two."""
    commands = {ancestor.pid: _command_line(ancestor) for ancestor in _ancestors(pid)}
    found = [ancestor for ancestor, command in commands.items() if is_launcher(command)]
    if not found and "TORCHELASTIC_RUN_ID" in os.environ:
        # A program of another name that uses the library of torchrun.
        found = [ancestor for ancestor, command in commands.items() if _is_python(command)][:1]
    return found


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line runs torchrun or `deepspeed`, as a Python script or module."""
    if not _is_python(command):
        return False
    script = next((argument for argument in command[1:] if argument == "-m" or not argument.startswith("-")), "")
    if script == "-m":
        return any(module in command[1:] for module in MODULES)
    return Path(script).stem in LAUNCHERS or any(script.endswith(f"{name.replace('.', '/')}.py") for name in MODULES)


def report_failure(error: BaseException, *, retryable: bool) -> None:
    """Give torchrun the error for its summary; if the error is not retryable, make torchrun stop restarting."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    with suppress(OSError):
        get_error_handler().record_exception(error)
    restarts_left = int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) - int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts_left > 0 and not retryable:
        _print("a restart would fail the same way: stopping torchrun")
        for launcher in find_launchers(os.getpid())[:1]:
            with suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGTERM)


def _wait_for_death(watched: select.poll, timeout: float) -> None:
    watched.poll()
    _end("the launcher has died", timeout)


def _end(why: str, timeout: float) -> None:
    _print(f"{why}; stopping as on SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(timeout)
    _print(f"still running {timeout:g} s after the launcher's death; exiting without saving")
    os.kill(os.getpid(), signal.SIGKILL)


def _print(message: str) -> None:
    try:
        sys.stderr.write(f"rank {os.environ.get('RANK', '0')}: {message}\n")
        sys.stderr.flush()
    except OSError:
        # The reader of the output died with the launcher. Later messages must not keep the rank from saving.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)


def _is_python(command: Sequence[str]) -> bool:
    return bool(command) and Path(command[0]).name.startswith("python")


def _ancestors(pid: int) -> Iterator[psutil.Process]:
    """Nearest first, up to the first one that is gone or hidden."""
    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid).parent()
        while process is not None:
            yield process
            process = process.parent()


def _command_line(process: psutil.Process) -> list[str]:
    """Empty for a process that is gone or of another user."""
    with suppress(psutil.Error, OSError):
        return process.cmdline()
    return []
