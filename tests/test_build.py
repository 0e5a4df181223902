"""The sdist, the wheel built from it, and editable builds, each used outside the checkout."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import slap_fast
from slap_fast import native

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

ENVIRONMENT = sysconfig.get_path("purelib")
EXTENSION_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
DATA_SUFFIXES = {".yaml", ".json", ".txt", ".css", ".js", ".html", ".svg", ".typed"}

LOCATE = """
import slap_fast, slap_fast.kernels
from slap_fast import native
print(slap_fast.__file__, slap_fast.kernels.__file__, native.isa(), sep="\\n")
"""
MEASURE = """
import torch
from slap_fast.ops.waveform_stats import waveform_stats
print(waveform_stats(torch.tensor([0.5, -1.0]), torch.tensor([0, 2])).peak.item())
"""


def _run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Without CUDA, optimization and other instruction sets: they take long and do not change which files are packed.
    cmake = "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF -DSLAP_FAST_ISAS="
    quick = {"SLAP_FAST_CUDA": "0", "CMAKE_ARGS": cmake}
    inherited = {name: value for name, value in os.environ.items() if name != native.ISA_VARIABLE}
    environment = {**inherited, **quick, **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _call_backend(source: Path, hook: str, out: Path, **environment: str) -> tuple[Path, str]:
    """Call a hook of the build backend, as pip does without build isolation; returns the built file and the output."""
    code = f"import sys; from setuptools import build_meta; print('built', build_meta.{hook}(sys.argv[1]))"
    done = _run([sys.executable, "-c", code, str(out)], source, **environment)
    return out / done.stdout.split()[-1], done.stdout + done.stderr


def _install(wheel: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    _run([*command, "--target", str(folder), str(wheel)], folder.parent)
    return folder


def _use(site: Path, code: str) -> tuple[list[str], str]:
    """Run `code` with slap-fast installed only in `site`; returns its output lines and its warnings."""
    # -S ignores the .pth files of the environment, one of which adds the checkout; addsitedir reads those in `site`.
    path = f"import site, sys; sys.path.append({ENVIRONMENT!r}); site.addsitedir({str(site)!r})\n"
    done = _run([sys.executable, "-S", "-c", path + code], site)
    return done.stdout.splitlines(), done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources of a build, without files of earlier builds."""
    copy = tmp_path_factory.mktemp("source") / "slap-fast"
    built = shutil.ignore_patterns("*.so", "__pycache__", "_C.unavailable.txt", "*.egg-info")
    for name in ("slap_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _call_backend(source, "build_sdist", tmp_path_factory.mktemp("sdist"))[0]


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4, 3.10.12
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    return folder / sdist.name.removesuffix(".tar.gz")


def test_the_version_equals_that_of_the_installed_package() -> None:
    assert metadata.version("slap-fast") == slap_fast.__version__


def test_the_sdist_has_all_sources_of_a_build(unpacked: Path) -> None:
    for name in ("CMakeLists.txt", "constraints.txt", "setup.py", "pyproject.toml", "LICENSE", "kernels/__init__.py"):
        assert (unpacked / name).is_file(), name
    for folder in ("csrc", "slap_fast"):
        expected = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.suffix in {".cpp", ".h", ".cu", ".py", *DATA_SUFFIXES} and path.name != "_C.unavailable.txt"
        }
        assert expected <= {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}


def test_a_wheel_from_the_sdist_works_outside_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    wheel, _ = _call_backend(unpacked, "build_wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    data = [
        path
        for path in (ROOT / "slap_fast").rglob("*")
        if path.suffix in DATA_SUFFIXES and path.name != "_C.unavailable.txt"
    ]
    assert {f"{path.relative_to(ROOT)}" for path in data} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/", "csrc/"))]
    # The DALI plugin is compiled from these where it is used.
    plugin = [path for folder in ("dali", "flac", "cpu") for path in (ROOT / "csrc" / folder).iterdir()]
    assert {f"slap_fast/{path.relative_to(ROOT)}" for path in plugin} <= set(names)

    site = _install(wheel, tmp_path / "site")
    (package, kernels, isa, peak), _ = _use(site, LOCATE + MEASURE)
    assert Path(package) == site / "slap_fast" / "__init__.py"
    assert Path(kernels) == site / "slap_fast" / "kernels" / "__init__.py"
    assert peak == "1.0"
    assert isa == ("baseline" if _has_compiler() else "None")


def test_without_a_compiler_the_package_installs_runs_and_names_what_is_missing(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    wheel, printed = _call_backend(copy, "build_wheel", tmp_path, CXX="/nonexistent/c++")
    missing = "no C++ compiler was found (looked for /nonexistent/c++)"
    assert printed.count(missing) == 1
    (*_, isa, peak), warned = _use(_install(wheel, tmp_path / "site"), LOCATE + MEASURE)
    assert (isa, peak) == ("None", "1.0")
    assert warned.count(f"built without the native module: {missing}; install a C++ compiler") == 1


def test_an_editable_build_without_a_compiler_leaves_no_stale_module(source: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    stale = copy / "slap_fast" / f"_C{EXTENSION_SUFFIX}"
    stale.write_bytes(b"from other sources")
    _call_backend(copy, "build_editable", tmp_path, CXX="/nonexistent/c++")
    assert not stale.exists()
    assert "/nonexistent/c++" in (copy / "slap_fast" / "_C.unavailable.txt").read_text(encoding="utf-8")


def test_a_compiler_error_is_reported_in_one_line(source: Path, tmp_path: Path) -> None:
    if not _has_compiler():
        pytest.skip("no C++ compiler")
    copy = shutil.copytree(source, tmp_path / "source")
    (copy / "csrc" / "cpu" / "isa.h").write_text("#error sources are broken\n", encoding="utf-8")
    _, printed = _call_backend(copy, "build_wheel", tmp_path)
    warning = next(line for line in printed.splitlines() if line.startswith("WARNING"))
    assert "sources are broken" in warning


def test_an_editable_build_puts_the_module_next_to_the_sources(source: Path, tmp_path: Path) -> None:
    if not _has_compiler():
        pytest.skip("no C++ compiler")
    copy = shutil.copytree(source, tmp_path / "source")
    # One small file: the test of the wheel compiles the others.
    (copy / "csrc" / "bindings.cpp").write_text(
        "#include <Python.h>\n"
        "PyMODINIT_FUNC PyInit__C() {\n"
        '  static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_C"};\n'
        "  PyObject* module = PyModule_Create(&definition);\n"
        '  PyModule_AddStringConstant(module, "__version__", SLAP_FAST_VERSION);\n'
        "  return module;\n"
        "}\n"
    )
    project = (copy / "CMakeLists.txt").read_text(encoding="utf-8").split("target_link_libraries(_C PRIVATE")[0]
    kept = [line for line in project.splitlines() if not line.startswith(("file(GLOB", "list(REMOVE_ITEM"))]
    (copy / "empty.cpp").write_text("")
    kept.insert(2, "set(sources empty.cpp)\nset(kernel_sources empty.cpp)")
    (copy / "CMakeLists.txt").write_text("\n".join(kept), encoding="utf-8")
    (copy / "slap_fast" / "_C.unavailable.txt").write_text("from an earlier build", encoding="utf-8")
    wheel, _ = _call_backend(copy, "build_editable", tmp_path)
    code = "import slap_fast, slap_fast.kernels, slap_fast._C as module\n"
    code += "print(slap_fast.__file__, slap_fast.kernels.__file__, module.__file__, module.__version__, sep='\\n')"
    (package, kernels, module, version), _ = _use(_install(wheel, tmp_path / "site"), code)
    assert Path(package) == copy / "slap_fast" / "__init__.py"
    assert Path(kernels) == copy / "kernels" / "__init__.py"
    assert Path(module) == copy / "slap_fast" / f"_C{EXTENSION_SUFFIX}"
    assert version == slap_fast.__version__
    assert not (copy / "slap_fast" / "_C.unavailable.txt").exists()


def _has_compiler() -> bool:
    return any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++"))


@pytest.mark.parametrize(
    ("requested", "torch", "wanted"),
    [
        ("", "cuda: Optional[str] = '13.0'", True),
        ("", "cuda: Optional[str] = None", False),
        ("", None, any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg"))),
        ("0", "cuda: Optional[str] = '13.0'", False),
        ("1", "cuda: Optional[str] = None", True),
    ],
)
def test_cuda_kernels_are_built_if_the_installed_torch_has_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requested: str, torch: str | None, wanted: bool
) -> None:
    if torch is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(f"{torch}\nhip: Optional[str] = None\n")
    monkeypatch.setenv("SLAP_FAST_CUDA", requested)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    assert runpy.run_path(str(ROOT / "setup.py"))["_wants_cuda"]() is wanted
