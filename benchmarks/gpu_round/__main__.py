"""Runs the stages of a GPU round: `python -m benchmarks.gpu_round`. See `benchmarks/README.md`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_round import ROOT, triton_cache
from benchmarks.gpu_round.stages import STAGES, Command, Round, Stage
from benchmarks.harness import json_lines
from benchmarks.harness.cli import DEVICE_LOST
from benchmarks.harness.machine import describe_machine, describe_versions

MAX_RESTARTS = 3
LOG_BYTES = 200_000  # kept of the output of each process, its end
TIMED_OUT = "timed out"
NO_TIME = "not started: no time left"
WORK = Path("/tmp/slap-fast-gpu-round")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status. 0: all stages passed; 1: a process failed; 2: invalid arguments, or no GPU."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_round", description=__doc__)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu is a rehearsal (default: %(default)s)"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes, to test that everything works; not a measurement"
    )
    parser.add_argument("--stages", default=",".join(names), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-round"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="folder of temporary files (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="triton-cache.tar.gz of an earlier round with the same --work")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit of the round (default: %(default)s)")
    options = parser.parse_args(argv)
    wanted = options.stages.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; for a rehearsal, add --device cpu --tiny")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu is a rehearsal and needs --tiny")

    round_ = Round(options.device, options.tiny, options.out.resolve(), options.work.resolve())
    for folder in (round_.out, round_.work, round_.triton_cache):
        folder.mkdir(parents=True, exist_ok=True)
    if options.cache is not None:
        triton_cache.unpack(options.cache, round_.triton_cache)
    json_lines.append(
        round_.results,
        stage="round",
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        tiny=options.tiny,
        machine=describe_machine(options.device),
        versions=describe_versions(),
    )
    end = time.monotonic() + 60 * options.minutes
    ok = True
    for stage in STAGES:
        if stage.name in wanted:
            ok &= _run_stage(stage, round_, end)
    print(f"results: {round_.out}; for tables, run python -m benchmarks.gpu_round.collect {round_.out}")
    return 0 if ok else 1


def _run_stage(stage: Stage, round_: Round, end: float) -> bool:
    start = time.monotonic()
    deadline = min(end, start + stage.seconds)
    if start >= end:
        json_lines.append(round_.results, stage=stage.name, event="end", status=NO_TIME, ok=False)
        print(f"{stage.name:10} {NO_TIME}", flush=True)
        return False
    processes = [_Process(command, round_, stage.name) for command in stage.commands(round_)]
    while running := [process for process in processes if process.status is None]:
        for process in running:
            process.poll(deadline)
        time.sleep(0.05)
    for process in processes:
        seconds = process.ended - start
        json_lines.append(
            round_.results, stage=stage.name, event="end", process=process.command.label, status=process.status,
            ok=process.ok, restarts=process.restarts, seconds=seconds,
        )  # fmt: skip
        print(f"{stage.name:10} {process.command.label:15} {process.status!s:10} {seconds:6.1f} s", flush=True)
        process.append_log(round_.out / "log.txt", stage.name)
    return all(process.ok for process in processes)


class _Process:
    """A running command. It is killed at the deadline, and restarted if it dies and can resume."""

    def __init__(self, command: Command, round_: Round, stage: str) -> None:
        self.command = command
        self.status: int | str | None = None
        self.restarts = 0
        self.ended = 0.0
        self._log = round_.work / f"{stage}-{command.label.replace(' ', '-')}.log"
        self._environment = {
            **os.environ,
            "TRITON_CACHE_DIR": str(round_.triton_cache),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1" if "warm" in command.label else "8"),
            **command.environment,
        }
        self._log.write_bytes(b"")
        self._process = self._start(command.argv)

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                argv, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def ok(self) -> bool:
        return self.status == 0

    def poll(self, deadline: float) -> None:
        status = self._process.poll()
        if status is None and time.monotonic() > deadline:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.status = TIMED_OUT
        elif status is not None:
            died = status < 0 or status == DEVICE_LOST
            if died and self.command.resume is not None and self.restarts < MAX_RESTARTS:
                self.restarts += 1
                self._process = self._start([*self.command.argv, *self.command.resume])
            else:
                self.status = status
        self.ended = time.monotonic()

    def append_log(self, path: Path, stage: str) -> None:
        content = self._log.read_bytes()
        with path.open("ab") as file:
            file.write(f"==== {stage}: {self.command.label}: {self.status}\n".encode())
            file.write(content[-LOG_BYTES:] + b"\n")


if __name__ == "__main__":
    sys.exit(main())
