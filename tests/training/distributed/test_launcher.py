"""Launcher: a rank stops when its launcher dies, and torchrun stops after a permanent failure."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from slap_fast.training.distributed.launcher import is_launcher
from tests.training.ranks import ROOT, environment

LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
RANK = """
import os, signal, sys, time
from slap_fast.training.distributed.launcher import watch_launcher
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, lambda *_: print("received SIGTERM", flush=True))
watch_launcher(0.5)
print(os.getpid(), flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(1)
"""


@pytest.mark.parametrize(
    ("command", "launcher"),
    [
        ("/opt/venv/bin/python3.11 /opt/venv/bin/torchrun --nproc-per-node 8 slap_fast/train.py", True),
        ("python -u -m torch.distributed.run --nnodes 2 slap_fast/train.py", True),
        ("/usr/bin/python /usr/bin/deepspeed --hostfile hosts slap_fast/train.py", True),
        ("/usr/bin/python3 -u -m deepspeed.launcher.launch --world_info=e30= slap_fast/train.py", True),
        ("python -u slap_fast/train.py recipe=paper training.output=runs/torchrun", False),
        ("python -m slap_fast train recipe=deepspeed", False),
        ("bash -c torchrun slap_fast/train.py", False),
        ("vim torchrun", False),
        ("", False),
    ],
)
def test_launchers_are_recognized_by_their_command_lines(command: str, launcher: bool) -> None:
    assert is_launcher(shlex.split(command)) is launcher


def start(
    folder: Path, names: Sequence[str], *, stubborn: bool = False, **extra: str
) -> tuple[subprocess.Popen[str], int]:
    """Start a rank under nested launchers of these names; returns the outermost process and the pid of the rank."""
    command = [sys.executable, "-c", RANK, "stubborn" if stubborn else "obedient"]
    for name in reversed(names):
        (folder / name).write_text(LAUNCHER)
        command = [sys.executable, str(folder / name), *command]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(**extra), cwd=ROOT
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def output_after_kill(process: subprocess.Popen[str]) -> str:
    """Kill the launcher; what the rank prints until its own death, which closes the last end of the pipe."""
    process.send_signal(signal.SIGKILL)
    return process.communicate(timeout=20)[0]


@pytest.mark.parametrize("names", [["torchrun"], ["deepspeed", "middle"]])
def test_a_rank_stops_when_a_launcher_above_it_is_killed(tmp_path: Path, names: list[str]) -> None:
    process, _ = start(tmp_path, names)
    assert "the launcher has died; stopping as on SIGTERM" in output_after_kill(process)


def test_a_rank_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process, _ = start(tmp_path, ["torchrun"], stubborn=True)
    output = output_after_kill(process)
    assert "received SIGTERM" in output
    assert "still running 0.5 s after the launcher's death; exiting without saving" in output


def test_a_program_that_uses_the_torchrun_library_is_a_launcher(tmp_path: Path) -> None:
    process, _ = start(tmp_path, ["my_program.py"], TORCHELASTIC_RUN_ID="none")
    assert "the launcher has died" in output_after_kill(process)


def test_a_rank_outlives_a_parent_that_is_not_a_launcher(tmp_path: Path) -> None:
    process, rank_pid = start(tmp_path, ["my_program.py"])
    process.send_signal(signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    # The rank has lost its parent, but still holds the other end of the pipe.
    subprocess.run(["kill", str(rank_pid)], check=True)
    assert process.communicate(timeout=20)[0] == ""


def test_a_rank_whose_launcher_died_during_start_up_does_not_start(tmp_path: Path) -> None:
    script = f"({shlex.join([sys.executable, '-c', RANK, 'obedient'])}) & exit"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(TORCHELASTIC_RUN_ID="none", RANK="1"),
        cwd=ROOT,
    )
    assert "rank 1: the launcher died before this rank had started" in done.stderr
    assert time.monotonic() - began < 15


FAILING = """
import sys
from slap_fast.training.distributed.launcher import report_failure
report_failure(ValueError("a bad key"), retryable=sys.argv[1] == "retryable")
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("error", "restart", "stops"), [("retryable", 1, False), ("permanent", 1, True), ("permanent", 3, False)]
)
def test_torchrun_is_stopped_when_restarts_are_left_and_would_fail_the_same_way(
    tmp_path: Path, error: str, restart: int, stops: bool
) -> None:
    (tmp_path / "torchrun").write_text(LAUNCHER)
    elastic = {"RUN_ID": "none", "MAX_RESTARTS": "3", "RESTART_COUNT": str(restart)}
    elastic["ERROR_FILE"] = str(tmp_path / "error.json")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "torchrun"), sys.executable, "-c", FAILING, error],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**{f"TORCHELASTIC_{name}": value for name, value in elastic.items()}),
        cwd=ROOT,
    )
    assert done.returncode == (-signal.SIGTERM if stops else 1), done.stderr
    assert ("a restart would fail the same way: stopping torchrun" in done.stderr) is stops
    # The file that torchrun's summary is made from.
    assert "ValueError: a bad key" in (tmp_path / "error.json").read_text()
