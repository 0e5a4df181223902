"""Peak memory of one peer's step, in a process of its own.

On the CPU this is the growth of the resident set. A sampler would miss a peak between two samples, and in a process
that has run another peer the allocator still holds what that one freed. A fresh child has no such past, and the kernel
keeps its high-water mark exactly; writing 5 to /proc/self/clear_refs forgets the peak of set-up. The child's allocator
gives every block of 64 KiB or more back when it is freed, so that the resident set follows the live tensors rather
than the heap's holes. What a first step loads once (thread pools, code pages) is counted: a few MiB, alike for all.
PyTorch's compiler is not, 150 MiB that the first call of any custom op imports.

On CUDA it is the caching allocator's own high-water mark of allocated (not reserved) bytes, which needs no process of
its own.

Those few MiB, and what a step returns, hide the working memory of a lean op. It is measured by itself, in one more
step: how far the peak lies above what is held when it ends, with what it returned still alive. Pages that earlier steps
left resident for good, be it a library's or a buffer that is kept, are counted apart. On the CPU the figure is good to
about a quarter of a MiB: the kernel counts pages in batches.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.harness.case import Run, Settings, load_benchmark
from benchmarks.harness.process_memory import status_bytes

STEPS = 2
LONG_STEP_SECONDS = 10.0  # a first step that takes longer is not repeated

Memory = dict[str, int | str]


def measure_in_child(benchmark: str, case: str, peer: str, settings: Settings) -> Memory:
    """Memory of `peer`, or only the `reason` why it could not be measured.

    `setup_bytes`: what set-up left behind; `step_bytes`: the most that the first steps held on top of that;
    `kept_bytes`: what they left behind; `working_bytes`: the most that one more step held beyond that and what it
    returns; and the `method`.
    """
    request = json.dumps({"benchmark": benchmark, "case": case, "peer": peer, "settings": asdict(settings)})
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.memory", request],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        last_line = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return {"reason": f"the measuring process ended with status {child.returncode}: {last_line}"}
    return json.loads(child.stdout)


def measure_here(benchmark: str, case: str, peer: str, settings: Settings) -> Memory:
    """What the child runs; see `measure_in_child`."""
    torch.set_num_threads(settings.threads)
    found = next(c for c in load_benchmark(benchmark).cases(settings) if c.name == case)
    setup = next(p for p in found.peers if p.name == peer).setup
    return _measure_cpu(setup)


def measure_on_gpu(run: Run, setup_bytes: int) -> Memory:
    """As `measure_in_child`, of what is set up in this process and took `setup_bytes`."""

    def peak() -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    figures = _measure(lambda: run, torch.cuda.memory_allocated, peak, torch.cuda.reset_peak_memory_stats)
    return {**figures, "setup_bytes": setup_bytes, "method": "torch.cuda.max_memory_allocated"}


def _measure_cpu(setup: Callable[[], Run]) -> Memory:
    clear_refs = Path("/proc/self/clear_refs")
    if not clear_refs.exists():
        return {"reason": "peak resident memory is read from /proc, which this system does not have"}
    importlib.import_module("torch._dynamo")
    figures = _measure(
        setup, lambda: status_bytes("VmRSS"), lambda: status_bytes("VmHWM"), lambda: clear_refs.write_text("5")
    )
    return {**figures, "method": "peak RSS of a fresh process"}


def _measure(
    setup: Callable[[], Run], held: Callable[[], int], peak: Callable[[], int], forget_peak: Callable[[], object]
) -> dict[str, int]:
    before = held()
    run = setup()
    gc.collect()
    set_up = held()
    forget_peak()
    for _ in range(STEPS):
        start = time.monotonic()
        run.step()
        if time.monotonic() - start > LONG_STEP_SECONDS:
            break
    highest = peak()
    gc.collect()
    kept = held()
    forget_peak()
    result = run.step()
    highest_warm = peak()
    left = held()
    del result
    return {
        "setup_bytes": set_up - before,
        "step_bytes": highest - set_up,
        "kept_bytes": kept - set_up,
        "working_bytes": highest_warm - max(left, kept),
    }


def _main() -> None:
    request = json.loads(sys.argv[1])
    settings = Settings(**request.pop("settings"))
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answer alone, whatever a peer prints
        memory = measure_here(**request, settings=settings)
    print(json.dumps(memory))


if __name__ == "__main__":
    _main()
