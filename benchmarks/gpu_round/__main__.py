"""`python -m benchmarks.gpu_round [--stages NAME,...] [--out FOLDER]`: see `benchmarks/README.md`."""

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

from benchmarks.gpu_round import ROOT, lines, triton_cache
from benchmarks.gpu_round.stages import STAGES, Command, Round, Stage
from benchmarks.harness.machine import describe_machine, describe_versions

RESTARTS = 3
LOG_BYTES = 200_000  # of each process' output that is kept, its end
TIMED_OUT = "timed out"
WORK = Path("/tmp/slap-fast-gpu-round")


def main(argv: Sequence[str] | None = None) -> int:
    """0: every stage ended and found nothing wrong; 1: see the summary; 2: the command cannot be carried out."""
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_round", description=__doc__)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that all works, and is no measurement")
    parser.add_argument("--stages", default=",".join(names), help="comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-round"), help="folder of results (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of all else (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="triton-cache.tar.gz of an earlier call with the same --work")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all stages together (default: %(default)s)")
    options = parser.parse_args(argv)
    wanted = options.stages.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here; rehearse with --device cpu --tiny")
    if options.device == "cpu" and not options.tiny:
        parser.error("on a CPU there is only the rehearsal: --device cpu --tiny")

    round_ = Round(options.device, options.tiny, options.out.resolve(), options.work.resolve())
    for folder in (round_.out, round_.work, round_.triton_cache):
        folder.mkdir(parents=True, exist_ok=True)
    if options.cache is not None:
        triton_cache.unpack(options.cache, round_.triton_cache)
    lines.append(
        round_.results,
        stage="round",
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        tiny=options.tiny,
        machine=describe_machine(options.device),
        versions=describe_versions(),
    )
    end = time.monotonic() + 60 * options.minutes
    right = True
    for stage in STAGES:
        if stage.name in wanted:
            right &= _run(stage, round_, end)
    print(f"results: {round_.out}; python -m benchmarks.gpu_round.collect {round_.out} makes tables of them")
    return 0 if right else 1


def _run(stage: Stage, round_: Round, end: float) -> bool:
    begun = time.monotonic()
    deadline = min(end, begun + stage.seconds)
    right = True
    if begun >= end:
        lines.append(round_.results, stage=stage.name, event="end", status="not begun: no time left", ok=False)
        print(f"{stage.name:10} not begun: no time left", flush=True)
        return False
    processes = [_Process(command, round_, stage.name) for command in stage.commands(round_)]
    while running := [process for process in processes if process.status is None]:
        for process in running:
            process.poll(deadline)
        time.sleep(0.05)
    for process in processes:
        ok = process.status == 0
        right &= ok
        seconds = process.ended - begun
        lines.append(
            round_.results, stage=stage.name, event="end", process=process.command.label, status=process.status, ok=ok,
            restarts=process.restarts, seconds=seconds,
        )  # fmt: skip
        print(f"{stage.name:10} {process.command.label:15} {process.status!s:10} {seconds:6.1f} s", flush=True)
        process.keep_log(round_.out / "log.txt", stage.name)
    return right


class _Process:
    """A command at work: killed when its time is over, run again when it died and can go on."""

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

    def poll(self, deadline: float) -> None:
        status = self._process.poll()
        if status is None and time.monotonic() > deadline:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.status = TIMED_OUT
        elif status is not None:
            died = status < 0 or status == 3
            if died and self.command.resume is not None and self.restarts < RESTARTS:
                self.restarts += 1
                self._process = self._start([*self.command.argv, *self.command.resume])
            else:
                self.status = status
        self.ended = time.monotonic()

    def keep_log(self, path: Path, stage: str) -> None:
        content = self._log.read_bytes()
        with path.open("ab") as file:
            file.write(f"==== {stage}: {self.command.label}: {self.status}\n".encode())
            file.write(content[-LOG_BYTES:] + b"\n")


if __name__ == "__main__":
    sys.exit(main())
