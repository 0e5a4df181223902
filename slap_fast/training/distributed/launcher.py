"""The launcher above a rank: what happens when it dies, and what it is told when the rank fails."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from slap_fast.training.distributed.process_stat import parent

LAUNCHERS = ("torchrun", "deepspeed")
MODULES = (
    "torch.distributed.run",
    "torch.distributed.launch",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
)


def watch_launcher(timeout: float) -> None:
    """From now on, the death of the launcher ends this process, so that no rank outlives it.

    It is as if the rank had received SIGTERM: once there is something to save, the ranks agree to stop at the end of a
    step and save. A rank that has not come to its end `timeout` seconds later is killed.
    """
    if not hasattr(os, "pidfd_open"):
        return  # not Linux
    launchers = launchers_of(os.getpid())
    if "TORCHELASTIC_RUN_ID" in os.environ and not launchers:
        _end("the launcher died before this rank had started", timeout)
    watched = select.poll()
    for process in launchers:
        try:
            watched.register(os.pidfd_open(process), select.POLLIN)
        except ProcessLookupError:
            _end(f"the launcher, process {process}, died before this rank had started", timeout)
    if launchers:
        threading.Thread(target=_wait, args=(watched, timeout), name="launcher watch", daemon=True).start()


def launchers_of(process: int) -> list[int]:
    """The ancestors of a process that are launchers, the nearest first; `deepspeed` is two."""
    ancestors: dict[int, list[str]] = {}
    while (process := parent(process)) > 0:
        ancestors[process] = _command(process)
    found = [ancestor for ancestor, command in ancestors.items() if is_launcher(command)]
    if not found and "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun's library in a program of another name.
        found = [ancestor for ancestor, command in ancestors.items() if _is_python(command)][:1]
    return found


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line is that of torchrun or `deepspeed`, which are scripts or modules of Python."""
    if not _is_python(command):
        return False
    script = next((argument for argument in command[1:] if argument == "-m" or not argument.startswith("-")), "")
    if script == "-m":
        return any(module in command[1:] for module in MODULES)
    return Path(script).stem in LAUNCHERS or any(script.endswith(f"{name.replace('.', '/')}.py") for name in MODULES)


def report_failure(error: BaseException, *, mendable_by_restart: bool) -> None:
    """Tell torchrun why this rank fails, for its summary; and to give up if starting again would change nothing."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    with suppress(OSError):
        get_error_handler().record_exception(error)
    restarts_left = int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) - int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts_left > 0 and not mendable_by_restart:
        _say("starting again would not help: torchrun is told to give up")
        for process in launchers_of(os.getpid())[:1]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)


def _wait(watched: select.poll, timeout: float) -> None:
    watched.poll()
    _end("the launcher has died", timeout)


def _end(why: str, timeout: float) -> None:
    _say(f"{why}; stopping as on SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(timeout)
    _say(f"still not at the end {timeout:g} s after the launcher's death; leaving without saving")
    os.kill(os.getpid(), signal.SIGKILL)


def _say(message: str) -> None:
    try:
        sys.stderr.write(f"rank {os.environ.get('RANK', '0')}: {message}\n")
        sys.stderr.flush()
    except OSError:
        # Whoever read the output died with the launcher. What is still to be said must not keep the rank from saving.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)


def _is_python(command: Sequence[str]) -> bool:
    return bool(command) and Path(command[0]).name.startswith("python")


def _command(process: int) -> list[str]:
    """Empty for a process that is gone, or is another user's."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
