"""Build of slap-fast: the native module is built with CMake; if that fails, the rest is installed without it."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REASON_FILE = "_C.unavailable.txt"  # read by slap_fast/native.py


class NativeBuildError(Exception):
    """The native module cannot be built; the message is the reason."""


class CMakeBuild(build_ext):
    """Writes `slap_fast/_C.*.so`; if the build fails, `slap_fast/_C.unavailable.txt` with the reason."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        reason_file = module.with_name(REASON_FILE)
        module.parent.mkdir(parents=True, exist_ok=True)
        for stale in (module, reason_file):
            stale.unlink(missing_ok=True)
        try:
            self._build(module)
        except NativeBuildError as error:
            reason_file.write_text(f"{error}\n", encoding="utf-8")
            print(
                f"WARNING: slap-fast is built without its native module: {error}\n"
                "WARNING: the PyTorch backend will be used; for full speed, install a C++ compiler and reinstall.",
                file=sys.stderr,
            )

    def _build(self, module: Path) -> None:
        """Build with CUDA if it is of use here and nvcc is found; if that fails, build without CUDA."""
        cuda = _wants_cuda()
        try:
            self._run_cmake(module, cuda=cuda)
        except NativeBuildError as error:
            if not cuda or shutil.which("nvcc") is None:
                raise
            shutil.rmtree(self._cmake_folder(), ignore_errors=True)
            self._run_cmake(module, cuda=False)
            print(f"WARNING: slap-fast is built without its CUDA kernels: {error}", file=sys.stderr)

    def _cmake_folder(self) -> Path:
        return Path(self.build_temp, "cmake").resolve()

    def copy_extensions_to_source(self) -> None:
        """Editable install: copy the module or the reason to the source folder, and delete the other."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            source = ROOT.joinpath(*ext.name.split(".")).parent
            module = Path(self.build_lib, self.get_ext_filename(ext.name))
            reason = module.with_name(REASON_FILE)
            if reason.exists():
                (source / module.name).unlink(missing_ok=True)
                shutil.copy(reason, source / REASON_FILE)
            else:
                (source / REASON_FILE).unlink(missing_ok=True)

    def _run_cmake(self, module: Path, *, cuda: bool) -> None:
        # Find tools of this Python environment even if it is not activated.
        scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *scripts])
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise NativeBuildError("cmake was not found")
        requested = shlex.split(os.environ.get("CXX", ""))
        compilers = requested[:1] or ["c++", "g++", "clang++"]
        if not any(shutil.which(compiler, path=path) for compiler in compilers):
            raise NativeBuildError(f"no C++ compiler was found (looked for {', '.join(compilers)})")
        try:
            import pybind11
        except ImportError as error:
            raise NativeBuildError("pybind11 is not installed") from error

        # By path: importing slap_fast needs packages that a build environment does not have.
        sources = runpy.run_path(str(ROOT / "slap_fast" / "native_sources.py"))
        build = self._cmake_folder()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake,
            f"-S{ROOT}",
            f"-B{build}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={module.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DSLAP_FAST_VERSION={self.distribution.get_version()}",
            f"-DSLAP_FAST_SOURCES={sources['source_digest'](ROOT)}",
            f"-DSLAP_FAST_CUDA={'ON' if cuda else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        if not (build / "CMakeCache.txt").exists() and shutil.which("ninja", path=path):
            configure.append("-GNinja")
        environment = {**os.environ, "PATH": path}
        self._run(configure, environment)
        self._run([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)], environment)
        if not module.exists():
            raise NativeBuildError(f"cmake did not build {module.name}")

    def _run(self, command: list[str], environment: dict[str, str]) -> None:
        try:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
        except OSError as error:
            raise NativeBuildError(f"{command[0]}: {error.strerror}") from error
        print(done.stdout)
        if done.returncode:
            raise NativeBuildError(f"cmake failed with exit code {done.returncode}: {_first_error(done.stdout)}")


def _wants_cuda() -> bool:
    """Whether to build CUDA kernels, which takes minutes: by SLAP_FAST_CUDA; unset, if the installed torch has CUDA.

    If torch is not installed yet, if there is an NVIDIA driver.
    """
    requested = os.environ.get("SLAP_FAST_CUDA", "")
    if requested:
        return requested != "0"
    # Not imported: a build environment of pip does not have it, but these are the paths of the environment around it.
    for folder in {sysconfig.get_path("platlib"), sysconfig.get_path("purelib")}:
        version = Path(folder, "torch", "version.py")
        if version.is_file():
            built_for = re.search(r"^cuda\b.*=\s*(.+)$", version.read_text(encoding="utf-8"), re.MULTILINE)
            return built_for is not None and built_for[1].strip() != "None"
    return any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg"))


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if "CMake Error" in line:
            return " ".join(lines[index : index + 3])  # the message is on the following lines
        if re.search(r"[\s:]error:", line):
            return line
    return lines[-1] if lines else "no message"


setup(
    packages=[
        *find_packages(include=["slap_fast", "slap_fast.*"]),
        "slap_fast.kernels",
        *(f"slap_fast.kernels.{name}" for name in find_packages("kernels")),
        "slap_fast.csrc",  # for slap_fast/integrations/dali.py, which compiles it where it is used
    ],
    # A top-level package named `kernels` would shadow another library's.
    package_dir={"slap_fast.kernels": "kernels", "slap_fast.csrc": "csrc"},
    package_data={
        "slap_fast": ["py.typed", "recipes/*.yaml", "planning/*.yaml", "library/*.txt", "app/*.css", "app/*.js"],
        "slap_fast.csrc": ["*.cmake", "*/*.h", "*/*.cpp", "*/*.cu", "dali/CMakeLists.txt"],
    },
    ext_modules=[Extension("slap_fast._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
