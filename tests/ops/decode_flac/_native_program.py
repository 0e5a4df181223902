"""Build of tests/native/flac_test.cpp, which decodes as CPUs do and as the emulated GPU does, under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mpclmul"]
SANITIZED = ["-std=c++17", "-g1", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
SANITIZED += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build_program(folder: Path, optimization: str = "-O0") -> Path:
    """The program, in `folder`; `COMPILER` must not be None."""
    isas = {"baseline": [], **({"avx2": AVX2} if _compiles(AVX2) else {})}
    general = [*SANITIZED, optimization, *(["-DSLAP_FAST_HAS_AVX2"] if "avx2" in isas else [])]
    objects = {
        name: ["-ffp-contract=off", f"-DSLAP_FAST_ISA={name}", *flags, "csrc/cpu/flac_decode_kernel.cpp"]
        for name, flags in isas.items()
    }
    sources = ("csrc/cpu/flac_decode.cpp", "csrc/cpu/isa.cpp", "csrc/cpu/parallel.cpp", "tests/native/flac_test.cpp")
    objects |= {Path(source).stem: [source] for source in sources}

    def compile_object(name: str) -> None:
        command = [str(COMPILER), *general, "-c", *objects[name], "-o", str(folder / f"{name}.o")]
        subprocess.run(command, cwd=ROOT, check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_object, objects))
    made = folder / "flac_test"
    parts = [str(folder / f"{name}.o") for name in objects]
    subprocess.run([str(COMPILER), *general, *parts, "-o", str(made), "-lpthread", "-ldl"], check=True)
    return made


def _compiles(flags: list[str]) -> bool:
    done = subprocess.run(
        [str(COMPILER), *flags, "-x", "c++", "-fsyntax-only", "-"], input=b"#include <immintrin.h>", capture_output=True
    )
    return done.returncode == 0
