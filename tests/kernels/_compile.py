"""Cross-compilation of Triton kernels: registers, spills and shared memory for a GPU that this machine lacks.

Inside `cross_compile(capability)` launchers take CPU tensors. A launch compiles its kernel for the types, strides and
alignments of the arguments, and runs nothing. Triton caches the compiled kernels.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from slap_fast.kernels import launch

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:\d+ LOCAL:(?P<local>\d+)")


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel.

    Attributes:
        name: of the kernel function.
        registers: per thread.
        local: bytes of local memory per thread, for spills and stack.
        shared: bytes of shared memory per block.
        threads: per block.
        ptx: PTX text.
        hash: of all inputs of the compiler.
        cubin: binary for the GPU.
    """

    name: str
    registers: int
    local: int
    shared: int
    threads: int
    ptx: str = field(repr=False)
    hash: str = field(repr=False)
    cubin: bytes = field(repr=False)

    @functools.cached_property
    def sass(self) -> str:
        """Machine instructions, as printed by cuobjdump."""
        return _cuobjdump("-sass", self.cubin)

    def count(self, instruction: str) -> int:
        """Number of SASS instructions named `instruction`, with or without suffixes after a dot."""
        return len(re.findall(rf"\b{re.escape(instruction)}(?![\w])", self.sass))


class _AbsentGPU:
    """The part of a Triton driver that compilation uses."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch  # one kernel cache per architecture

    def get_current_stream(self, _device: int) -> int:
        return 0


@contextmanager
def cross_compile(capability: tuple[int, int]) -> Iterator[list[Compiled]]:
    """Yields a list that gets one entry per launch, also if the kernel was already compiled."""
    launched: list[Compiled] = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
        launched.append(_measure(compiled))
        return compiled

    def capability_of(_device: torch.device) -> tuple[int, int]:
        return capability

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(launch, "capability", capability_of)
        active = triton.runtime.driver._active
        triton.runtime.driver.set_active(_AbsentGPU(capability))
        try:
            yield launched
        finally:
            triton.runtime.driver._active = active


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [os.fspath(_CUOBJDUMP), option, os.fspath(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _measure(kernel: Any) -> Compiled:
    report = _cuobjdump("-res-usage", kernel.asm["cubin"])
    usage = _USAGE.search(report)
    assert usage is not None, report
    return Compiled(
        name=kernel.metadata.name,
        registers=int(usage["registers"]),
        local=int(usage["stack"]) + int(usage["local"]),
        shared=kernel.metadata.shared,
        threads=32 * kernel.metadata.num_warps,
        ptx=kernel.asm["ptx"],
        hash=kernel.hash,
        cubin=kernel.asm["cubin"],
    )
