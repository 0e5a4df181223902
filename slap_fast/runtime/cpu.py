"""How the CPU libraries beneath torch behave; they read most of it once, so it is settled before torch is loaded."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    # Threads that spin while they wait make a step 20 times slower when another process wants a core.
    "OMP_WAIT_POLICY": "passive",
    # oneDNN keeps a compiled product for each of the last 1,024 shapes. A packed batch has a new length at every step:
    # most are of no more use, and hold gigabytes. 32 serve the layers of a step; without any, it takes 10 % longer, in
    # micro-batches 17 %.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}
_GRAIN = 32_768  # elements that torch gives a thread at least


def settle() -> None:
    """Set what the user has not set, for a program that is slap-fast's own. To be called before torch is loaded."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def without_spinning() -> Iterator[None]:
    """Makes OpenMP's threads sleep while they wait, in a process whose torch was loaded without `settle`.

    By default GCC's runtime spins for milliseconds before it sleeps. On a machine where other processes want the cores,
    that turns a product of microseconds into one of milliseconds: 16 clips took 9.3 s in place of 0.3 s. It spins
    hardly at all while there are more OpenMP threads than cores (GCC's manual, GOMP_SPINCOUNT): idle ones see to that
    here. The number of threads that compute does not change, and so no bit of a result does.

    It takes about a millisecond to enter. Where torch has one thread, more threads than cores, or no OpenMP, nothing
    happens.
    """
    import torch

    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if threads == 1 or threads > cores or not torch.backends.openmp.is_available():
        yield
        return
    teams = cores // threads  # together with the caller's, they have more threads than there are cores
    formed, done = threading.Barrier(teams + 1), threading.Event()

    def hold_a_team() -> None:
        try:
            # Threads belong to the thread that started them, from its first parallel work until its end.
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
