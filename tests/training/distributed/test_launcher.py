"""What becomes of a rank whose launcher dies."""

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
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: print("told to stop", flush=True))
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
def test_launchers_are_known_by_their_command_lines(command: str, launcher: bool) -> None:
    assert is_launcher(shlex.split(command)) is launcher


def start(folder: Path, names: Sequence[str], *, deaf: bool = False, **extra: str) -> tuple[subprocess.Popen[str], int]:
    """A rank below launchers of these names, each below the one before: the outermost process, and the rank's id."""
    command = [sys.executable, "-c", RANK, "deaf" if deaf else "obedient"]
    for name in reversed(names):
        (folder / name).write_text(LAUNCHER)
        command = [sys.executable, str(folder / name), *command]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(**extra), cwd=ROOT
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def said_after_death(process: subprocess.Popen[str]) -> str:
    """What a rank says between its launcher's death and its own, which closes the last end of the pipe."""
    process.send_signal(signal.SIGKILL)
    return process.communicate(timeout=20)[0]


@pytest.mark.parametrize("names", [["torchrun"], ["deepspeed", "middle"]])
def test_a_rank_stops_when_a_launcher_above_it_is_killed(tmp_path: Path, names: list[str]) -> None:
    process, _ = start(tmp_path, names)
    assert "the launcher has died; stopping as on SIGTERM" in said_after_death(process)


def test_a_rank_that_does_not_come_to_its_end_is_killed(tmp_path: Path) -> None:
    process, _ = start(tmp_path, ["torchrun"], deaf=True)
    said = said_after_death(process)
    assert "told to stop" in said
    assert "still not at the end 0.5 s after the launcher's death" in said


def test_a_program_that_uses_the_library_of_torchrun_is_a_launcher(tmp_path: Path) -> None:
    process, _ = start(tmp_path, ["my_program.py"], TORCHELASTIC_RUN_ID="none")
    assert "the launcher has died" in said_after_death(process)


def test_a_rank_outlives_a_shell_that_is_no_launcher(tmp_path: Path) -> None:
    process, rank = start(tmp_path, ["my_program.py"])
    process.send_signal(signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    # The rank is nobody's child now, but holds the other end of the pipe.
    subprocess.run(["kill", str(rank)], check=True)
    assert process.communicate(timeout=20)[0] == ""


def test_a_rank_whose_launcher_died_during_its_start_does_not_start(tmp_path: Path) -> None:
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
report_failure(ValueError("a bad key"), mendable_by_restart=sys.argv[1] == "mendable")
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("error", "restart", "gives_up"), [("mendable", 1, False), ("lasting", 1, True), ("lasting", 3, False)]
)
def test_torchrun_gives_up_where_restarts_are_left_and_would_not_help(
    tmp_path: Path, error: str, restart: int, gives_up: bool
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
    assert done.returncode == (-signal.SIGTERM if gives_up else 1), done.stderr
    assert ("torchrun is told to give up" in done.stderr) is gives_up
    # What torchrun shows at its end.
    assert "ValueError: a bad key" in (tmp_path / "error.json").read_text()
