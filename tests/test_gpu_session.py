"""`pytest -m gpu` with missing packages, and after a test that loses the GPU. Both are simulated without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ["soundfile", "soxr", "cffi", "kaldi_native_fbank", "librosa", "deepspeed", "hjson", "pydantic", "nvidia.dali"]

BLOCK = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *where):
        return None if name in {ABSENT!r} else self.finder.find_spec(name, *where)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""

# The functions of torch that the plugin calls. The state is per process, as that of a lost GPU.
TORCH = """
class cuda:
    lost = False

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def synchronize():
        if cuda.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\\nCUDA kernel errors might ...")
"""

CONFTEST = """
from tests._lost_device import LostDevice
from tests._missing_packages import pytest_make_collect_report

def pytest_configure(config):
    config.pluginmanager.register(LostDevice())
"""

TESTS = """
import time
import pytest
from torch import cuda

@pytest.mark.parametrize("number", range(20))
def test_one(number):
    time.sleep(0.02)
    cuda.synchronize()
    if number == 3:
        cuda.lost = True
        cuda.synchronize()
    if number == 7:
        cuda.lost = True  # the test itself does not notice
    if number == 9:
        raise RuntimeError("CUDA out of memory, which is not sticky")
"""


def _pytest(
    *arguments: str | Path, path: Path, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run pytest in `folder`, with `path` first on the module search path."""
    places = [str(path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    environment |= variables
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _collected(report: str) -> list[str]:
    return sorted(line for line in report.splitlines() if "::" in line)


def test_gpu_tests_are_collected_without_packages_that_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    (tmp_path / "absent.py").write_text(BLOCK, encoding="utf-8")
    done = _pytest("-p", "absent", "-q", "-m", "gpu", "--collect-only", "-rs", path=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    left_out = re.findall(
        r"SKIPPED \[1\] (tests/\S+\.py):1: no GPU test in it, and (\S+) is not installed", done.stdout
    )
    assert {package for _, package in left_out} <= set(ABSENT)
    assert ("tests/audio/test_waveform.py", "soundfile") in left_out

    holds = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    everything = _pytest("-q", "-m", "gpu", "--collect-only", *holds, path=tmp_path)
    assert everything.returncode == 0, everything.stdout[-3000:]
    assert _collected(done.stdout) == _collected(everything.stdout)
    assert len(_collected(done.stdout)) >= 624


def _run_file(path: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a test file with the content `text`."""
    files = {"torch.py": TORCH, "conftest.py": CONFTEST, "pytest.ini": "[pytest]\nmarkers = gpu\n", "test_it.py": text}
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    return _pytest("-p", "xdist", *arguments, path=path, folder=path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


@pytest.mark.parametrize(
    ("text", "arguments", "code"),
    [
        ("import cymbals", ["-m", "gpu"], pytest.ExitCode.NO_TESTS_COLLECTED),
        ("import cymbals", ["-m", "not gpu"], pytest.ExitCode.INTERRUPTED),
        ("import cymbals, pytest\npytestmark = pytest.mark.gpu", ["-m", "gpu"], pytest.ExitCode.INTERRUPTED),
        ("import tests.cymbals", ["-m", "gpu"], pytest.ExitCode.INTERRUPTED),
    ],
)
def test_only_a_file_without_gpu_tests_is_skipped_if_a_package_is_missing(
    text: str, arguments: list[str], code: int, tmp_path: Path
) -> None:
    done = _run_file(tmp_path, text, "-rs", *arguments)
    assert done.returncode == code, done.stdout
    skipped = "SKIPPED [1] test_it.py:1: no GPU test in it, and cymbals is not installed" in done.stdout
    assert skipped == (code == pytest.ExitCode.NO_TESTS_COLLECTED)
    assert skipped or "cymbals'" in done.stdout


def test_a_worker_that_lost_the_gpu_is_replaced_and_other_tests_are_not_affected(tmp_path: Path) -> None:
    done = _run_file(tmp_path, TESTS, "-rf", "-n", "2")
    assert "3 failed, 17 passed" in done.stdout, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert sorted(re.findall(r"test_one\[(\d+)\]", line)[0] for line in failed) == ["3", "7", "9"]
    assert done.stdout.count("replacing crashed worker") == 2
    assert "crashed while running" not in done.stdout
    assert "the GPU was lost in test_it.py::test_one[7]: CUDA error: an illegal memory access" in done.stdout


def test_a_run_without_workers_stops_at_the_test_that_lost_the_gpu(tmp_path: Path) -> None:
    done = _run_file(tmp_path, TESTS)
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "E           RuntimeError: CUDA error: an illegal memory access was encountered" in done.stdout
    assert re.search(
        r"^!+ Interrupted: the GPU was lost in test_it.py::test_one\[3\]: CUDA error: .* !+$", done.stdout, re.MULTILINE
    )
