"""Starts ranks as processes, and runs functions of `tests.training.worker` on them."""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.fork_server import fork_server

ROOT = Path(__file__).resolve().parents[2]
# Seconds after which ranks count as hung: two slow cores that others use take minutes for 30 s of a fast one.
HUNG = 600.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**extra: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        **extra,
    }


def start(command: Sequence[str], log: Path, **extra: str) -> subprocess.Popen[bytes]:
    """Start a process in its own process group, so that nothing outlives the test."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment(**extra), cwd=ROOT, start_new_session=True
        )


def finish(processes: Sequence[subprocess.Popen[bytes] | Program], log: Path, timeout: float = HUNG) -> list[int]:
    """Wait for the exit codes; kill what still runs after `timeout` seconds and raise AssertionError."""
    try:
        return [process.wait(timeout) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"still running after {timeout} s:\n{tail(log)}") from error
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@dataclass(frozen=True)
class Program:
    """A Python program that was started by `start_program`, with the part of `subprocess.Popen` that tests use."""

    process: BaseProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.process.exitcode


def start_program(module: str, arguments: Sequence[str], log: Path, **extra: str) -> Program:
    """Start `python -m MODULE ARGUMENTS` in its own process group, without the time that its imports take.

    Args:
        module: name of a module, or path of a script.
    """
    process = fork_server().Process(target=_run, args=(module, list(arguments), log, environment(**extra)), name=module)
    process.start()
    return Program(process)


def _run(module: str, arguments: Sequence[str], log: Path, variables: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[1:] = arguments
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def start_ranks(module: str, arguments: Sequence[Sequence[str]], log: Path) -> list[Program]:
    """Start one rank of a program for each list of arguments, as a launcher would."""
    port = str(free_port())
    return [
        start_program(
            module,
            own,
            log,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(len(arguments)),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank, own in enumerate(arguments)
    ]


def run_worker(folder: Path, *names: str, timeout: float = HUNG) -> dict[str, Any]:
    """Call `worker.NAME(ranks, folder)` for each name on two ranks; returns the results of rank 0, through JSON."""
    log = folder / "ranks.log"
    processes = start_ranks("tests.training.worker", [[str(folder), *names]] * 2, log)
    codes = finish(processes, log, timeout)
    assert codes == [0, 0], f"exit codes {codes}:\n{tail(log)}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
