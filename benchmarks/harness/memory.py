"""Peak memory of a peer's step.

On the CPU, this is the growth of the resident set size (RSS), measured in one child process per peer: in a process that
has run another peer, the allocator still holds memory which that peer freed. The operating system records the exact
peak, which sampling could miss; writing 5 to /proc/self/clear_refs resets it after set-up. The allocator of the child
returns every freed block of 64 KiB or more to the system, so the RSS follows the live tensors. Thread pools and code
pages that the first step loads are included: a few MiB, the same for all peers. PyTorch's compiler, 150 MiB that the
first call of any custom op imports, is not.

On CUDA, it is the peak of allocated (not reserved) bytes of the caching allocator, measured in this process.

For a small op, these few MiB and the result of the step are larger than its working memory. One more step therefore
measures the working memory alone: the peak minus the memory at the end of the step, while its result is still alive.
Memory that earlier steps kept (library pages, cached buffers) is reported separately. On the CPU, this is accurate to
about a quarter of a MiB, because the kernel counts pages in batches.
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
LONG_STEP_SECONDS = 10.0  # after a longer step, no other is run

Memory = dict[str, int | str]


def measure_in_child(benchmark: str, case: str, peer: str, settings: Settings) -> Memory:
    """Measure a peer on the CPU.

    Returns:
        `setup_bytes`: memory after set-up; `step_bytes`: peak of the first steps, above `setup_bytes`; `kept_bytes`:
        memory that these steps kept; `working_bytes`: peak of one more step, above what is kept and its result; and the
        `method`. Or only the `reason` why memory could not be measured.
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
        return {"reason": f"the child process exited with status {child.returncode}: {last_line}"}
    return json.loads(child.stdout)


def measure_on_gpu(run: Run, setup_bytes: int) -> Memory:
    """Measure a peer that was set up in this process; returns the same keys as `measure_in_child`."""

    def peak() -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    figures = _measure(lambda: run, torch.cuda.memory_allocated, peak, torch.cuda.reset_peak_memory_stats)
    return {**figures, "setup_bytes": setup_bytes, "method": "torch.cuda.max_memory_allocated"}


def _measure_cpu(setup: Callable[[], Run]) -> Memory:
    clear_refs = Path("/proc/self/clear_refs")
    if not clear_refs.exists():
        return {"reason": "peak memory is read from /proc, which this system does not have"}
    importlib.import_module("torch._dynamo")
    figures = _measure(
        setup, lambda: status_bytes("VmRSS"), lambda: status_bytes("VmHWM"), lambda: clear_refs.write_text("5")
    )
    return {**figures, "method": "peak RSS of a fresh process"}


def _measure(
    setup: Callable[[], Run], held: Callable[[], int], peak: Callable[[], int], reset_peak: Callable[[], object]
) -> dict[str, int]:
    before = held()
    run = setup()
    gc.collect()
    after_setup = held()
    reset_peak()
    for _ in range(STEPS):
        start = time.monotonic()
        run.step()
        if time.monotonic() - start > LONG_STEP_SECONDS:
            break
    peak_first = peak()
    gc.collect()
    kept = held()
    reset_peak()
    result = run.step()
    peak_last = peak()
    with_result = held()
    del result
    return {
        "setup_bytes": after_setup - before,
        "step_bytes": peak_first - after_setup,
        "kept_bytes": kept - after_setup,
        "working_bytes": peak_last - max(with_result, kept),
    }


def _main() -> None:
    """The child process: argument and output are JSON."""
    request = json.loads(sys.argv[1])
    settings = Settings(**request["settings"])
    torch.set_num_threads(settings.threads)
    with contextlib.redirect_stdout(sys.stderr):  # a peer may print
        case = next(c for c in load_benchmark(request["benchmark"]).cases(settings) if c.name == request["case"])
        peer = next(p for p in case.peers if p.name == request["peer"])
        memory = _measure_cpu(peer.setup)
    print(json.dumps(memory))


if __name__ == "__main__":
    _main()
