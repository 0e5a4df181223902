"""DALI plugin: FLAC decoded inside NVIDIA DALI pipelines, on CPU threads or on the GPU.

    from nvidia.dali import fn
    from slap_fast.integrations import dali

    dali.register()
    waveform, sample_rate, error = fn.slap_fast.flac(encoded)                    # on DALI's CPU threads
    waveform, sample_rate, error = fn.slap_fast.flac(encoded, device="mixed")    # on the GPU, from bytes on the host

A plugin runs only in the version of DALI for which it was compiled, so it is compiled where it is first used, and kept
in a cache. That needs a C++ compiler, and nvcc for `device="mixed"`. Everything else comes with the extra `dali`.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slap_fast.errors import MissingExtraError, SlapFastError
from slap_fast.runtime.durable_files import replace_file_with

logger = logging.getLogger(__name__)

LIBRARY = "libslap_fast_dali.so"
CACHE_VARIABLE = "SLAP_FAST_CACHE"
CUDA_VARIABLE = "SLAP_FAST_CUDA"
_BUILD_VARIABLES = ("CMAKE_ARGS", "CXX", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAHOSTCXX")
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg")

_lock = threading.Lock()


class DaliPluginError(SlapFastError):
    """The plugin cannot be compiled, or DALI cannot load it."""


def register(library: str | Path | None = None) -> None:
    """Add `fn.slap_fast.flac` and `ops.slap_fast.Flac` to DALI in this process. Does nothing if DALI has them.

    The operator's documentation is `help(fn.slap_fast.flac)` afterwards. Pipelines that contain it can be deserialized
    in processes that have called this.

    Args:
        library: a plugin that `build` made with this version of DALI; None is the one in the cache, built if need be.

    Raises:
        MissingExtraError: DALI or CMake is not installed.
        DaliPluginError: the plugin cannot be compiled, or belongs to another version of DALI.
    """
    _dali()
    with _lock:
        # DALI aborts the process that loads a second plugin with an operator of the same name.
        if not _has_operator():
            if library is None:
                _load(build(), "delete this file, and it is compiled again")
            else:
                _load(Path(library).resolve(), "call slap_fast.integrations.dali.register() without a library")


def build(*, cuda: bool | None = None) -> Path:
    """Compile the plugin for the installed version of DALI, unless the cache has it.

    For processes without Python, such as Triton Inference Server, and for machines without a compiler: copy the file
    there. With `DALI_PRELOAD_PLUGINS` set to its path, DALI loads it at its own start.

    Environment variables of CMake, such as CXX, CXXFLAGS and CMAKE_ARGS, have their usual meaning; with others, the
    plugin is compiled again.

    Args:
        cuda: whether to compile the operator for `device="mixed"`, which takes about a minute and nvcc. None does if
            nvcc is found and the machine has an NVIDIA driver; the environment variable SLAP_FAST_CUDA overrides that
            (1 or 0).

    Returns:
        Path of `libslap_fast_dali.so`, in `$SLAP_FAST_CACHE` (default `~/.cache/slap_fast`), in a folder for this
        version of DALI and these sources.

    Raises:
        MissingExtraError: DALI or CMake is not installed.
        DaliPluginError: no compiler, or it fails; the message has its first error.
    """
    dali = _dali()
    nvcc = _nvcc()
    if cuda is None:
        cuda = _wants_cuda(nvcc)
    if cuda and nvcc is None:
        raise DaliPluginError(
            "the DALI operator for device='mixed' needs nvcc, which was not found on PATH, in CUDA_HOME or in this "
            "Python environment: pip install 'cuda-toolkit[nvcc]', or build(cuda=False) for device='cpu' alone"
        )
    sources = _sources()
    settings = (dali.__version__, platform.machine(), "cuda" if cuda else "cpu")
    folder = _cache() / "dali" / "-".join((*settings, _digest(sources)[:16]))
    library = folder / LIBRARY
    if not library.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / ".lock"):
                if not library.is_file():  # another process may have built it meanwhile
                    _compile(sources, library, nvcc=nvcc if cuda else None)
        except OSError as error:
            raise DaliPluginError(
                f"the DALI plugin cannot be written to {folder} ({error}); set {CACHE_VARIABLE} to another folder"
            ) from error
    return library


def _dali() -> Any:
    try:
        import nvidia.dali as dali
    except ImportError as error:
        raise MissingExtraError(
            f"the DALI plugin needs NVIDIA DALI ({error}); pip install 'slap-fast[dali]'"
        ) from error
    return dali


def _load(library: Path, advice: str) -> None:
    dali = _dali()
    from nvidia.dali import plugin_manager

    try:
        plugin_manager.load_library(str(library))
    except RuntimeError as error:
        # DALI's symbols have the version of DALI in their name, and all are bound when a plugin is loaded.
        raise DaliPluginError(
            f"DALI {dali.__version__} cannot load the plugin {library}: {error}. A plugin runs only in the version of "
            f"DALI for which it was compiled, and where the C++ library is not older: {advice}"
        ) from error
    if not _has_operator():
        raise DaliPluginError(f"{library} is not the plugin of slap-fast: it has no operator slap_fast.flac")


def _has_operator() -> bool:
    from nvidia.dali import fn

    return hasattr(getattr(fn, "slap_fast", None), "flac")


def _sources() -> Path:
    """`csrc`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "dali" / "CMakeLists.txt").is_file():
            return folder
    raise DaliPluginError(f"the C++ sources of the DALI plugin are not in {package / 'csrc'}: reinstall slap-fast")


def _cmake_arguments() -> list[str]:
    return shlex.split(os.environ.get("CMAKE_ARGS", ""))


def _compiled_files(sources: Path) -> list[Path]:
    """What csrc/dali/CMakeLists.txt compiles, and what that includes: other files may change without a new build."""
    patterns = ("dali/*", "*.cmake", "cpu/flac_*", "cpu/isa.*", "cpu/parallel.*", "cuda/flac*")
    pending = [path for pattern in patterns for path in sources.glob(pattern)]
    found = set()
    while pending:
        path = pending.pop().resolve()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for name in re.findall(r'^\s*#include "(.+?)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            pending += [path.parent / name, sources / name]
    return sorted(found)


def _digest(sources: Path) -> str:
    combined = hashlib.sha256("\0".join(os.environ.get(name, "") for name in _BUILD_VARIABLES).encode())
    for path in _compiled_files(sources):
        code = path.read_bytes()
        combined.update(f"{path.relative_to(sources).as_posix()}\0{len(code)}\0".encode() + code)
    return combined.hexdigest()


def _cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "slap_fast").expanduser().resolve()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes: of the ranks of a machine, one compiles and the others wait."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wants_cuda(nvcc: Path | None) -> bool:
    requested = os.environ.get(CUDA_VARIABLE, "")
    if requested:
        return requested != "0"
    return nvcc is not None and any(Path(driver).exists() for driver in _DRIVERS)


def _search_path() -> str:
    """PATH, and the tools of this Python environment even if it is not activated."""
    scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *scripts])


def _pip_toolkit() -> Path | None:
    """The CUDA toolkit that NVIDIA's packages install into this Python environment: headers, perhaps nvcc."""
    import nvidia

    for entry in nvidia.__path__:
        for folder in sorted(Path(entry).glob("cu[0-9]*"), reverse=True):
            if (folder / "include" / "cuda_runtime.h").is_file():
                return folder
    return None


def _nvcc() -> Path | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    toolkits = [*(Path(home) for home in homes if home), _pip_toolkit()]
    for folder in (*(str(toolkit / "bin") for toolkit in toolkits if toolkit), _search_path(), "/usr/local/cuda/bin"):
        found = shutil.which("nvcc", path=folder)
        if found:
            return Path(found)
    return None


def _compile(sources: Path, library: Path, nvcc: Path | None) -> None:
    from nvidia.dali import sysconfig as dali_sysconfig

    path = _search_path()
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise MissingExtraError("compiling the DALI plugin needs CMake; pip install 'slap-fast[dali]'")
    version = _dali().__version__
    logger.warning("compiling the plugin of slap-fast for DALI %s into %s, once", version, library.parent)
    for folder_of_killed_process in library.parent.glob("build-*"):  # the lock is held: nobody else compiles here
        shutil.rmtree(folder_of_killed_process, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as folder:
        configure = [
            cmake,
            f"-S{sources / 'dali'}",
            f"-B{folder}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DDALI_INCLUDE={dali_sysconfig.get_include_dir()}",
            f"-DDALI_LIBRARIES={dali_sysconfig.get_lib_dir()}",
            f"-DDALI_CXX11_ABI={_cxx11_abi(dali_sysconfig.get_compile_flags())}",
            f"-DCUDA_HEADERS_HINT={_pip_toolkit() or ''}",
            f"-DSLAP_FAST_CUDA={'OFF' if nvcc is None else 'ON'}",
            *_cmake_arguments(),
        ]
        if nvcc is not None:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        if shutil.which("ninja", path=path):
            configure.append("-GNinja")
        environment = {**os.environ, "PATH": path}
        if nvcc is not None:
            # NVIDIA's Python packages keep libraries in lib, where their nvcc does not look for them.
            libraries = [str(nvcc.resolve().parents[1] / "lib"), os.environ.get("LIBRARY_PATH", "")]
            environment["LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        build_command = [cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1)]
        for command in (configure, build_command):
            error = _run(command, environment)
            if error is not None:
                without = "" if nvcc is None else f"; {CUDA_VARIABLE}=0 compiles device='cpu' alone"
                raise DaliPluginError(f"the DALI plugin cannot be compiled: {error}{without}")
        replace_file_with(library, lambda temporary: _copy(Path(folder, LIBRARY), temporary))


def _cxx11_abi(flags: list[str]) -> str:
    return next(flag.partition("=")[2] for flag in flags if flag.startswith("-D_GLIBCXX_USE_CXX11_ABI="))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _run(command: list[str], environment: dict[str, str]) -> str | None:
    """The first error of a command; None if it succeeds."""
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    return _first_error(done.stdout) if done.returncode else None


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if "CMake Error" in line:
            return " ".join(lines[index : index + 5])
        if "error:" in line or "undefined reference" in line:
            return line
    return lines[-1] if lines else "no message"
