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
from tests._gpu_files import pytest_ignore_collect

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


class _Collected:
    """Plugin that has the names of the collected tests."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = sorted(item.nodeid for item in session.items)


def test_gpu_tests_are_collected_without_packages_that_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    (tmp_path / "absent.py").write_text(BLOCK, encoding="utf-8")
    collect = ["-q", "-m", "gpu", "--collect-only"]
    done = _pytest("-p", "absent", *collect, path=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    # In this process, which has imported these files anyway.
    everything = _Collected()
    holds = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    alone = ["-p", "no:cacheprovider", "-p", "no:faulthandler"]
    assert pytest.main([*alone, *collect, *holds], plugins=[everything]) == 0
    assert sorted(line for line in done.stdout.splitlines() if "::" in line) == everything.names
    assert len(everything.names) >= 624


def _run_file(path: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a test file with the content `text`."""
    files = {"torch.py": TORCH, "conftest.py": CONFTEST, "pytest.ini": "[pytest]\nmarkers = gpu\n", "test_it.py": text}
    for name, content in files.items():
        (path / name).write_text(content, encoding="utf-8")
    return _pytest("-p", "xdist", *arguments, path=path, folder=path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


@pytest.mark.parametrize(
    ("text", "marker", "code"),
    [
        ("import cymbals", "gpu", pytest.ExitCode.NO_TESTS_COLLECTED),
        ("import cymbals", "not gpu", pytest.ExitCode.INTERRUPTED),
        ("import cymbals, pytest\npytestmark = pytest.mark.gpu", "gpu", pytest.ExitCode.INTERRUPTED),
    ],
)
def test_only_a_file_without_gpu_tests_is_not_imported(text: str, marker: str, code: int, tmp_path: Path) -> None:
    done = _run_file(tmp_path, text, "-m", marker)
    assert done.returncode == code, done.stdout
    assert ("No module named 'cymbals'" in done.stdout) == (code == pytest.ExitCode.INTERRUPTED)


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
