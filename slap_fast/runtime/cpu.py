"""CPU runtime settings: OpenMP wait policy and oneDNN cache, read once by the libraries that torch loads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    # Threads that spin while they wait make a step 20 times slower when another process needs a core.
    "OMP_WAIT_POLICY": "passive",
    # oneDNN caches compiled kernels for the last 1,024 shapes. A packed batch has a new length at every step, so most
    # are never used again, and hold gigabytes. 32 are enough for the layers of a step; with 0 a step takes 10 % longer,
    # in micro-batches 17 %.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}
_GRAIN = 32_768  # least number of elements that torch gives to a thread


def configure_cpu_environment() -> None:
    """Set the variables that the user has not set. To be called by programs of slap-fast, before torch is imported."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def without_spinning() -> Iterator[None]:
    """Make waiting OpenMP threads sleep, in a process that imported torch without `configure_cpu_environment`.

    By default GCC's runtime spins for milliseconds before it sleeps. When other processes need the cores, this turns
    an operation of microseconds into one of milliseconds: 16 clips took 9.3 s instead of 0.3 s. With more OpenMP
    threads than cores it hardly spins (GCC's manual, GOMP_SPINCOUNT), so this starts idle threads. The number of
    computing threads stays the same, and so do the bits of every result.

    Takes about a millisecond to enter. Does nothing if torch has one thread, more threads than cores, or no OpenMP.
    """
    import torch

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if threads == 1 or threads > cores or not torch.backends.openmp.is_available():
        yield
        return
    teams = cores // threads  # with the caller's team, more threads than cores
    formed, done = threading.Barrier(teams + 1), threading.Event()

    def hold_a_team() -> None:
        try:
            # A thread owns its team of OpenMP threads, from its first parallel region until its end.
            torch.zeros(threads * _GRAIN, dtype=torch.float32, device="cpu").add_(1)
        finally:
            formed.wait()
        done.wait()

    holders = [threading.Thread(target=hold_a_team, name="slap-fast idle", daemon=True) for _ in range(teams)]
    for holder in holders:
        holder.start()
    formed.wait()
    try:
        yield
    finally:
        done.set()
        for holder in holders:
            holder.join()
