"""GPU round: a complete rehearsal on a CPU, and stages that fail, hang or die."""

from __future__ import annotations

import contextlib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_round import ROOT, __main__, collect, triton_cache
from benchmarks.gpu_round.operations import SIZES, operations
from benchmarks.gpu_round.reports import read_counters, read_tests
from benchmarks.gpu_round.stages import STAGES, Command, Round, Stage
from benchmarks.harness import json_lines
from slap_fast.ops import dispatch

PYTHON = [sys.executable, "-c"]


class InThisProcess:
    """A command `python -m MODULE` that has run to its end, in this process."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self._status: int | str | None = 0
        with log.open("a") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv[2:])
            try:
                with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                    runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
            except SystemExit as end:
                self._status = end.code

    def poll(self) -> int | str | None:
        return self._status


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All stages; benchmarks in this process, because a new one would import PyTorch for longer than they run."""
    out, work = tmp_path_factory.mktemp("round"), tmp_path_factory.mktemp("work")
    start = __main__._Process._start

    def start_here(process: Any, argv: list[str]) -> Any:
        if argv[1] == "-m" and argv[2].startswith("benchmarks"):
            return InThisProcess(argv, process._log)
        return start(process, argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(__main__._Process, "_start", start_here)
        status = __main__.main(["--device", "cpu", "--tiny", "--out", str(out), "--work", str(work)])
    return status, out


@pytest.mark.slow
def test_every_stage_runs_end_to_end_on_a_cpu(rehearsal: tuple[int, Path]) -> None:
    status, out = rehearsal
    found = collect.merge([out])
    assert {stage["stage"] for stage in found["stages"]} == {stage.name for stage in STAGES}
    assert [stage for stage in found["stages"] if not stage["ok"]] == []
    assert status == 0
    names = {operation.name for operation in operations(SIZES["tiny"], "cpu")}
    assert {job["job"] for job in found["jobs"]["smoke"]} == names
    assert all(job["ok"] for jobs in found["jobs"].values() for job in jobs)
    assert set(found["results"]) == {"swiglu-cpu-quick", "training_step-cpu-quick"}
    assert set(found["tests"]["counts"]) == {"skipped"}
    assert len(list(out.iterdir())) <= 8


@pytest.mark.slow
def test_the_page_shows_the_results_and_a_rehearsal_is_not_stored_with_measurements(
    rehearsal: tuple[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = rehearsal
    with pytest.raises(SystemExit):
        collect.main([str(out)])
    assert "a rehearsal is not a measurement" in capsys.readouterr().err
    assert collect.main([str(out), "--into", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    titles = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert {"Stages", "Ceilings", "Against float64", "Kernels of a training step", "Tests"} <= set(titles)
    assert "**A rehearsal: nothing here is a measurement.**" in page
    assert (tmp_path / "swiglu-cpu-quick.json").is_file()


def test_the_operations_cover_every_op_with_gpu_kernels() -> None:
    cpu_only = {"linear", "log_mel_patches", "mel_normalization", "waveform_stats"}
    by_table = {"decode_flac"}  # timed with its peers in the stage of the tables: it has no gradients and no dtypes
    assert {operation.op for operation in operations(SIZES["tiny"], "cpu")} == (
        set(dispatch.report()) - cpu_only - by_table
    )


def _run(stages: tuple[Stage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float = 1.0) -> int:
    monkeypatch.setattr(__main__, "STAGES", stages)
    arguments = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    names = ",".join(stage.name for stage in stages)
    return __main__.main([*arguments, "--minutes", str(minutes), "--stages", names])


def _stage(name: str, *commands: Command, seconds: float = 30.0) -> Stage:
    return Stage(name, seconds, lambda _round: list(commands))


def test_a_stage_that_fails_or_hangs_is_reported_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (
        _stage("broken", Command("a", [*PYTHON, "print('why'); raise SystemExit(5)"])),
        _stage("hanging", Command("b", [*PYTHON, "import time; time.sleep(600)"]), seconds=0.5),
        _stage("fine", Command("c", [*PYTHON, "pass"]), Command("d", [*PYTHON, "pass"])),
    )
    assert _run(stages, tmp_path, monkeypatch) == 1
    ends = collect.merge([tmp_path / "out"])["stages"]
    assert [(end["process"], end["status"], end["ok"]) for end in ends] == [
        ("a", 5, False), ("b", "timed out", False), ("c", 0, True), ("d", 0, True),
    ]  # fmt: skip
    assert "==== broken: a: 5\nwhy\n" in (tmp_path / "out" / "log.txt").read_text()


def test_stages_without_time_left_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run((_stage("late", Command("a", [*PYTHON, "pass"])),), tmp_path, monkeypatch, minutes=0.0) == 1
    (end,) = collect.merge([tmp_path / "out"])["stages"]
    assert end["status"] == "not started: no time left"


def test_a_process_that_died_is_restarted_if_it_can_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exits with status 3 (GPU lost); then it is killed by a signal; the second restart succeeds."""
    code = (
        "import os, sys, pathlib\n"
        "if '--resume' not in sys.argv: sys.exit(3)\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if not mark.exists(): mark.touch(); os.kill(os.getpid(), 9)\n"
    )
    resumed = Command("a", [*PYTHON, code], resume=["--resume"])
    assert _run((_stage("dying", resumed, Command("b", [*PYTHON, code])),), tmp_path, monkeypatch) == 1
    ends = collect.merge([tmp_path / "out"])["stages"]
    assert [(end["process"], end["status"], end["restarts"]) for end in ends] == [("a", 0, 2), ("b", 3, 0)]


def test_jobs_continue_in_a_new_process_after_a_job_that_lost_the_gpu(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks.losing_jobs", "--device", "cpu", "--results", str(results)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 1
    found = list(json_lines.read(results))
    assert [(job["job"], job["ok"]) for job in found] == [("first", True), ("illegal access", False), ("last", True)]
    assert found[1]["reason"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert found[1]["lost_the_gpu"]


def test_results_of_a_second_round_replace_those_of_the_first(tmp_path: Path) -> None:
    def call(name: str, **right: bool) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        json_lines.append(folder / "results.jsonl", stage="round", tiny=False)
        for job, ok in right.items():
            json_lines.append(folder / "results.jsonl", stage="smoke", job=job, ok=ok)
        return folder

    calls = [call("first", a=True, b=False), call("second", b=True)]
    with (calls[1] / "results.jsonl").open("a") as file:
        file.write('{"stage": "smoke", "job": "c", "o')  # cut off: the machine was lost
    found = collect.merge(calls)
    assert [(job["job"], job["ok"]) for job in found["jobs"]["smoke"]] == [("a", True), ("b", True)]
    assert len(found["rounds"]) == 2


def test_reports_of_ncu_and_pytest_are_reduced_to_the_content_of_the_page(tmp_path: Path) -> None:
    counters = tmp_path / "counters.csv"
    names = ("ID", "Kernel Name", "Section Name", "Metric Name", "Metric Unit", "Metric Value")
    rows = [
        ("0", "forward_kernel", "GPU Speed Of Light Throughput", "Duration", "us", "170.5"),
        ("0", "forward_kernel", "GPU Speed Of Light Throughput", "Memory Throughput", "%", "61.0"),
        ("0", "forward_kernel", "Memory Workload Analysis", "Memory Throughput", "Tbyte/s", "2.6"),
        ("1", "gradient_kernel", "Occupancy", "Achieved Occupancy", "%", "24.9"),
    ]
    text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in (names, *rows))
    counters.write_text(f"==PROF== Connected to process 7\n{text}\n")
    assert read_counters(counters) == [
        {"kernel": "forward_kernel", "Duration": "170.5 us", "Memory Throughput": "61.0 %"},
        {"kernel": "gradient_kernel", "Achieved Occupancy": "24.9 %"},
    ]
    tests = tmp_path / "tests.xml"
    tests.write_text(
        '<testsuites><testsuite><testcase classname="t" name="a"/>'
        '<testcase classname="t" name="b"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase classname="t" name="c"><skipped message="no flash-attn"/></testcase></testsuite></testsuites>'
    )
    assert read_tests(tests) == {
        "counts": {"passed": 1, "failed": 1, "skipped": 1},
        "failed": [{"test": "t::b", "message": "assert 1 == 2"}],
        "skipped": {"no flash-attn": 1},
    }


def test_a_packed_cache_has_only_files_that_triton_loads(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "ABC"
    folder.mkdir(parents=True)
    for name in ("kernel.cubin", "kernel.json", "kernel.ttir", "__grp__kernel.json"):
        (folder / name).write_text(name)
    assert triton_cache.pack(tmp_path / "cache", tmp_path / "cache.tar.gz") == 3
    triton_cache.unpack(tmp_path / "cache.tar.gz", tmp_path / "again")
    assert {path.name for path in (tmp_path / "again" / "ABC").iterdir()} == {
        "kernel.cubin", "kernel.json", "__grp__kernel.json",
    }  # fmt: skip


def test_stages_on_a_gpu_run_modules_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    found = Round("cuda", False, tmp_path / "out", tmp_path / "work")
    commands = {command.label: command for stage in STAGES for command in stage.commands(found)}
    assert {"install", "warm 13", "smoke", "tables", "training_step", "pytest", "memcheck", "racecheck"} <= set(
        commands
    )
    assert commands["install"].environment == {"CMAKE_ARGS": "-DCMAKE_CUDA_ARCHITECTURES=90-real"}
    assert commands["counters"].argv[0] == "ncu"
    for command in commands.values():
        if "-m" in command.argv and command.argv[0] == sys.executable:
            module = command.argv[command.argv.index("-m") + 1]
            path = ROOT / module.replace(".", "/")
            assert module in ("pip", "pytest") or path.with_suffix(".py").is_file() or path.is_dir()


def test_invalid_arguments_exit_with_2_and_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--stages", "smok"], "there is no stage smok; choose from build, smoke"),
        (["--device", "cpu"], "--device cpu is a rehearsal and needs --tiny"),
    ):
        with pytest.raises(SystemExit) as caught:
            __main__.main([*arguments, "--out", str(tmp_path)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
