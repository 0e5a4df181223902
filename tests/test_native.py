"""Native module: loading, reported errors, instruction sets, forks, sanitizers."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import slap_fast
from slap_fast import native
from slap_fast.native_sources import source_digest
from tests.ops._native import instruction_sets, needs_native

ROOT = Path(__file__).parents[1]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a new process: nothing loaded, no warning issued."""
    native._load.cache_clear()
    native._warn_once.cache_clear()
    yield
    native._load.cache_clear()
    native._warn_once.cache_clear()


def _chosen_isa(forced: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != native.ISA_VARIABLE}
    if forced is not None:
        environment[native.ISA_VARIABLE] = forced
    code = "from slap_fast import native; print(native.isa())"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_compiler
def test_the_module_is_available_where_there_is_a_compiler() -> None:
    assert native.unavailable() is None
    module = native.load()
    assert module is not None
    assert module.__version__ == slap_fast.__version__


@needs_compiler
def test_the_best_instruction_set_is_chosen_and_each_compiled_one_can_be_forced() -> None:
    module = native.load()
    assert module is not None
    names = ["baseline", "avx2", "avx512", "avx512_bf16"]
    runs = names[: names.index(module.detected_isa()) + 1]
    served = [name for name in module.compiled_isas() if name in runs]
    assert _chosen_isa(None).stdout.strip() == served[-1]
    for name in names:
        done = _chosen_isa(name)
        if name in served:
            assert done.stdout.strip() == name
        else:
            assert done.returncode != 0
            assert f"SLAP_FAST_ISA={name}: this " in done.stderr  # machine lacks it, or build has none


@needs_compiler
def test_an_unknown_instruction_set_is_an_error_that_names_the_known_ones() -> None:
    done = _chosen_isa("sse9")
    assert done.returncode != 0
    assert "unknown instruction set 'sse9'; choose one of baseline, avx2, avx512, avx512_bf16" in done.stderr


@pytest.mark.usefixtures("fresh")
def test_a_build_without_a_compiler_warns_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reason = tmp_path / "reason.txt"
    reason.write_text("no C++ compiler was found\n", encoding="utf-8")
    monkeypatch.setattr(native, "_REASON_FILE", reason)
    monkeypatch.setitem(sys.modules, "slap_fast._C", None)
    with pytest.warns(RuntimeWarning, match=r"built without the native module: no C\+\+ compiler was found"):
        assert native.load() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load() is None
        assert native.isa() is None
        assert "install a C++ compiler" in str(native.unavailable())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'slap_fast._C'"), "not built for this Python"),
        (ImportError("libstdc++.so.6: version `GLIBCXX_9' not found"), "GLIBCXX_9' not found"),
    ],
)
def test_other_reasons_for_a_missing_module_are_distinguished(
    error: ImportError, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(native, "_REASON_FILE", tmp_path / "absent.txt")
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.warns(RuntimeWarning, match="PyTorch backend is used instead"):
        assert message in str(native.unavailable())


@pytest.mark.usefixtures("fresh")
def test_a_module_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(__version__="0.0.1"))
    with pytest.warns(RuntimeWarning, match="has version 0.0.1"):
        assert native.load() is None


@pytest.mark.usefixtures("fresh")
def test_a_module_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = SimpleNamespace(__version__=slap_fast.__version__, __sources__="0" * 64)
    monkeypatch.setattr(importlib, "import_module", lambda name: stale)
    with pytest.warns(RuntimeWarning, match="built from other C\\+\\+ code than in csrc/"):
        assert native.load() is None


def test_any_change_of_the_sources_changes_their_digest(tmp_path: Path) -> None:
    assert source_digest(tmp_path) is None
    (tmp_path / "CMakeLists.txt").write_text("project(a)")
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    seen = [source_digest(tmp_path)]
    for name, content in (("a.cpp", "int a;"), ("a.cpp", "int b;"), ("cpu/a.h", ""), ("../CMakeLists.txt", "")):
        (tmp_path / "csrc" / name).write_text(content)
        seen.append(source_digest(tmp_path))
    (tmp_path / "csrc" / "a.cpp").rename(tmp_path / "csrc" / "c.cpp")
    seen.append(source_digest(tmp_path))
    assert len(set(seen)) == len(seen)
    (tmp_path / "csrc" / "notes.txt").write_text("not code")
    assert source_digest(tmp_path) == seen[-1]


@needs_native
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_starts_its_own_threads() -> None:
    waveform, offsets = np.ones(1 << 20, np.float32), np.array([0, 1 << 20])
    peak, mean_square, nonfinite = np.zeros(1, np.float32), np.zeros(1), np.zeros(1, np.int64)
    arrays = {
        "waveform": waveform,
        "cu_seqlens": offsets,
        "peak": peak,
        "mean_square": mean_square,
        "nonfinite": nonfinite,
    }
    module = native.load()
    assert module is not None

    def measure() -> None:
        addresses = {name: array.ctypes.data for name, array in arrays.items()}
        module.waveform_stats(total=len(waveform), clips=1, threads=4, **addresses)

    measure()  # leaves threads of PyTorch waiting, which the child does not inherit
    child = os.fork()
    if child == 0:
        peak[0] = 0.0
        measure()
        os._exit(0 if peak[0] == 1.0 else 1)
    deadline = time.monotonic() + 30.0
    done, status = 0, -1
    while not done and time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done, "the child waits for threads that it does not have"
    assert os.waitstatus_to_exitcode(status) == 0


@needs_compiler
@pytest.mark.slow
def test_cpp_code_is_clean_under_address_and_undefined_behavior_sanitizers(tmp_path: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), scripts])}
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1"  # line numbers; compiles faster than -g
    configure = ["cmake", f"-S{ROOT}", f"-B{tmp_path}", "-DSLAP_FAST_NATIVE_TEST=ON", f"-DCMAKE_CXX_FLAGS={flags}"]
    # Only the instruction sets that can run here.
    configure.append(f"-DSLAP_FAST_ISAS={';'.join(instruction_sets()[1:])}")
    configure.append("-DCMAKE_CXX_FLAGS_RELEASE=-O0")  # with sanitizers, -O1 compiles 150 s longer and runs 35 s less
    for command in (configure, ["cmake", "--build", str(tmp_path), "--parallel", "2"], [str(tmp_path / "native_test")]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    module = native.load()
    assert module is not None
    assert "baseline ok" in done.stdout
    assert f"{native.isa()} ok" in done.stdout
