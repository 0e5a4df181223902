"""Starts ranks as processes, and runs functions of `tests.training.worker` on them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


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


def finish(processes: Sequence[subprocess.Popen[bytes]], log: Path, timeout: float) -> list[int]:
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


def start_ranks(commands: Sequence[Sequence[str]], log: Path) -> list[subprocess.Popen[bytes]]:
    """Start one rank per command, as a launcher would."""
    port = str(free_port())
    return [
        start(
            command,
            log,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(len(commands)),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank, command in enumerate(commands)
    ]


def run_worker(folder: Path, *names: str, timeout: float = 240.0) -> dict[str, Any]:
    """Call `worker.NAME(ranks, folder)` for each name on two ranks; returns the results of rank 0, through JSON."""
    log = folder / "ranks.log"
    processes = start_ranks([[sys.executable, "-m", "tests.training.worker", str(folder), *names]] * 2, log)
    codes = finish(processes, log, timeout)
    assert codes == [0, 0], f"exit codes {codes}:\n{tail(log)}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
