"""Stages of a GPU round, the most important first: their commands and time limits."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu_round import counters

COUNTERS, TESTS = "counters.csv", "tests.xml"
WORKERS = 14  # for a machine with 16 cores per GPU


@dataclass(frozen=True)
class Round:
    """Options of a round.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        tiny: small sizes and few processes.
        out: folder of the results, at most eight files.
        work: folder of temporary files.
    """

    device: str
    tiny: bool
    out: Path
    work: Path

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def triton_cache(self) -> Path:
        return self.work / "triton-cache"

    @property
    def packed_cache(self) -> Path:
        return self.out / "triton-cache.tar.gz"

    @property
    def size(self) -> str:
        return "tiny" if self.tiny else "paper"


@dataclass(frozen=True)
class Command:
    """One process.

    Attributes:
        label: unique in its stage.
        argv: program and arguments.
        resume: arguments to append for a restart, after it died or lost the GPU; None: no restart.
        environment: additional environment variables.
    """

    label: str
    argv: list[str]
    resume: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Processes that run in parallel.

    Attributes:
        name: for `--stages`.
        seconds: time limit.
        commands: makes the commands of a round.
    """

    name: str
    seconds: float
    commands: Callable[[Round], list[Command]]


def _module(round_: Round, name: str, *more: str, label: str | None = None, size: str | None = None) -> Command:
    argv = [sys.executable, "-m", f"benchmarks.gpu_round.{name}", "--device", round_.device]
    argv += ["--size", size or round_.size, "--results", str(round_.results), *more]
    return Command(label or name, argv)


def _build(round_: Round) -> list[Command]:
    """Build the native module for this GPU only; in parallel, compile all Triton kernels."""
    if round_.device == "cpu":
        build = Command("install", [sys.executable, "-c", "import slap_fast.kernels.variants"])
    else:
        pip = "pip install --quiet --no-deps --no-build-isolation --disable-pip-version-check -e ."
        major, minor = torch.cuda.get_device_capability()
        build = Command(
            "install",
            [sys.executable, "-m", *pip.split()],
            environment={"CMAKE_ARGS": f"-DCMAKE_CUDA_ARCHITECTURES={major}{minor}-real"},
        )
    shards = 1 if round_.tiny else WORKERS
    size = round_.size if round_.tiny else "few"
    return [
        build,
        *(
            _module(round_, "warm", "--shard", str(shard), "--shards", str(shards), label=f"warm {shard}", size=size)
            for shard in range(shards)
        ),
    ]


def _benchmark(
    round_: Round, label: str, names: list[str], *, seconds: float, budget: float, quick: list[str]
) -> Command:
    argv = [sys.executable, "-m", "benchmarks", *names, "--device", round_.device]
    argv += ["--out", str(round_.work / "tables"), "--lines", str(round_.results)]
    argv += quick if round_.tiny else ["--seconds", str(seconds), "--budget", str(budget)]
    return Command(label, argv, resume=["--resume"])


def _timings(round_: Round) -> list[Command]:
    names = ["attention", "losses", "rms_norm", "swiglu", "rotary", "log_mel", "decode_flac"]
    names = ["swiglu"] if round_.tiny else names
    return [_benchmark(round_, "tables", names, seconds=0.5, budget=40, quick=["--quick", "--no-memory"])]


def _step(round_: Round) -> list[Command]:
    quick = ["--quick", "--no-memory", "--cases", "equal durations, fp32"]
    return [_benchmark(round_, "training_step", ["training_step"], seconds=3, budget=60, quick=quick)]


def _trace(round_: Round) -> list[Command]:
    return [_module(round_, "trace", "--trace", str(round_.out / "trace.json.gz"))]


def _counters(round_: Round) -> list[Command]:
    """Nsight Compute; without it, run the ops alone."""
    command = _module(round_, "counters")
    if round_.device == "cpu" or shutil.which("ncu") is None:
        return [command]
    ncu = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--set", "detailed", "--csv"]
    ncu += ["--log-file", str(round_.out / COUNTERS), "--kernel-name", counters.KERNELS]
    return [Command("counters", [*ncu, *command.argv])]


def _tests(round_: Round) -> list[Command]:
    """GPU tests, in workers that are replaced after a sticky CUDA error; in parallel, a memory checker."""
    tests = ["tests/test_gpu.py"] if round_.tiny else []
    workers = 0 if round_.tiny else WORKERS  # 0: in the process of pytest itself
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", *tests]
    pytest += ["-n", str(workers), "--max-worker-restart", "200", f"--junitxml={round_.out / TESTS}"]
    found = [Command("pytest", pytest)]
    size = round_.size if round_.tiny else "few"
    checker = None if round_.device == "cpu" else shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if checker else ():
        command = _module(round_, "warm", "--stage", tool, "--all", label=tool, size=size)
        found.append(Command(tool, [str(checker), "--tool", tool, "--error-exitcode", "9", *command.argv]))
    return found


def _pack(round_: Round) -> list[Command]:
    argv = [sys.executable, "-m", "benchmarks.gpu_round.triton_cache", "pack"]
    return [Command("pack", [*argv, str(round_.triton_cache), str(round_.packed_cache)])]


STAGES = (
    Stage("build", 130, _build),
    Stage("smoke", 60, lambda round_: [_module(round_, "smoke")]),
    Stage("ceilings", 30, lambda round_: [_module(round_, "ceilings")]),
    Stage("timings", 180, _timings),
    Stage("step", 110, _step),
    Stage("trace", 50, _trace),
    Stage("counters", 60, _counters),
    Stage("tests", 150, _tests),
    Stage("pack", 20, _pack),
)
