"""Processes of a drill, found by a marker in their environment anywhere in the process tree."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARKER = "SLAP_FAST_DRILL"


class DrillFailed(AssertionError):
    """The drill found a fault of the program."""


class MarkedProcesses:
    """All processes that inherited the marker."""

    def __init__(self) -> None:
        self.environment = {MARKER: uuid.uuid4().hex}

    def alive(self) -> dict[int, dict[str, str]]:
        """The environment of each process, by process id; zombies have none and are left out."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with suppress(OSError):
                    pairs = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                    variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                    if variables.get(MARKER) == self.environment[MARKER]:
                        found[int(folder.name)] = variables
        return found

    def ranks(self) -> dict[int, int]:
        """Process ids by rank."""
        return {int(variables["RANK"]): process for process, variables in self.alive().items() if "RANK" in variables}

    def kill(self) -> None:
        for process in self.alive():
            send(process, signal.SIGKILL)


def send(process: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def wait(condition: Callable[[], bool], timeout: float, what: str, every: float = 0.02) -> float:
    """Wait for a condition; returns the seconds it took.

    Raises:
        DrillFailed: the condition did not hold within `timeout` seconds.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise DrillFailed(f"{what}: not within {timeout:g} s")
        time.sleep(every)
    return time.monotonic() - began
