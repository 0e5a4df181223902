"""Engine of several processes, for CPUs: each decodes and embeds recordings of its own.

Processes, not threads: a worker that dies, by a decoder that crashes or for lack of memory, costs the recording that
killed it, and the library goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from multiprocessing.connection import Pipe, wait

from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.indexing.jobs import Embedded, Event, Failed, Job
from slap_fast.library.indexing.worker import Broken, Ready

_JOBS_PER_WORKER = 2  # at least: one is decoded while the model embeds the other
_SMALL_JOBS_PER_WORKER = 64  # at most, of short recordings, which the model embeds several at a time
_BYTES_PER_WORKER = 32 << 20  # of these
_SHARES = 8  # so many times fewer bytes than are left, for each worker: none has much to do when the others are done
# By default glibc returns freed activations to the kernel, and the page faults of the next step take up to 8 % of its
# time. 32 MiB is the largest mmap threshold that every version of glibc accepts.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
_START = "from slap_fast.library.indexing.worker import main; main()"


class WorkerPool:
    """Worker processes with the audio tower of a model."""

    def __init__(self, model: ModelIdentity, workers: int, *, threads: int = 1) -> None:
        """
        Args:
            model: what each worker loads, at its start; it must be the same each time.
            workers: number of processes, started with the first job.
            threads: of PyTorch, in each.
        """
        self.workers = workers
        self._model = model
        self._threads = threads
        self._running: list[_Worker] = []
        self._waiting: deque[Job] = deque()
        self._left = 0  # bytes that are not submitted yet
        self._suspects: deque[Job] = deque()  # were in a worker that died; each runs alone, to find out which it was
        self._found: list[Event] = []

    @property
    def pending(self) -> int:
        return (
            sum(len(worker.jobs) for worker in self._running)
            + len(self._waiting)
            + len(self._suspects)
            + sum(not isinstance(event, Embedded) for event in self._found)
        )

    @property
    def full(self) -> bool:
        return len(self._waiting) + len(self._suspects) >= 2 * self.workers

    def submit(self, job: Job, left: int = 0) -> None:
        """
        Args:
            job: is handed to a worker, or waits for one.
            left: bytes of the recordings that will be submitted after it.
        """
        self._left = left
        while len(self._running) < self.workers:
            self._running.append(_Worker(self._model.name, self._threads))
        self._waiting.append(job)
        self._hand_out()

    def next(self) -> list[Event]:
        """Events that are there, at least one.

        Raises:
            LibraryError: workers cannot start, or the model cannot be used or is another one by now.
            RuntimeError: a bug, with the traceback of the worker.
        """
        while not self._found:
            ready = wait([worker.connection for worker in self._running])
            for worker in [worker for worker in self._running if worker.connection in ready]:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    self._replace(worker)
                else:
                    self._receive(worker, message)
            self._hand_out()
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """End the workers; jobs that are not done are forgotten."""
        for worker in self._running:
            worker.close()
        self._running = []

    def _receive(self, worker: _Worker, message: list[Event] | Ready | Broken) -> None:
        if isinstance(message, Ready):
            if message.weights != self._model.weights:
                raise LibraryError(
                    f"{self._model.name}: the model was replaced by another one ({message.weights}, not "
                    f"{self._model.weights}), whose embeddings cannot be compared; put the model of the library back"
                )
            worker.started = True
        elif isinstance(message, Broken):
            if message.bug:
                raise RuntimeError(f"in a worker process:\n{message.message}")
            raise LibraryError(message.message)
        else:
            for event in message:
                if not isinstance(event, Embedded):
                    worker.jobs.remove(event.job)
            self._found += message

    def _hand_out(self) -> None:
        for worker in sorted(self._running, key=lambda worker: len(worker.jobs)):
            if self._suspects and not worker.jobs:
                worker.alone = True
                worker.send(self._suspects.popleft())
        while self._waiting:
            open_to = [worker for worker in self._running if not (worker.alone and worker.jobs)]
            chosen = min(open_to, key=lambda worker: len(worker.jobs), default=None)
            if chosen is None or not self._takes(chosen, self._waiting[0]):
                return
            chosen.alone = False
            chosen.send(self._waiting.popleft())

    def _takes(self, worker: _Worker, job: Job) -> bool:
        if len(worker.jobs) < _JOBS_PER_WORKER:
            return True
        allowed = min(_BYTES_PER_WORKER, self._left // (_SHARES * self.workers))
        return len(worker.jobs) < _SMALL_JOBS_PER_WORKER and sum(job.size for job in [*worker.jobs, job]) <= allowed

    def _replace(self, worker: _Worker) -> None:
        code = worker.close()
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        if not worker.started:
            raise LibraryError(
                f"a worker process ended while it loaded the model ({how}), perhaps for lack of memory; use fewer "
                "(--workers 1)"
            )
        if worker.alone:
            for job in worker.jobs:
                detail = f"the process that read it died ({how}): its decoder crashed, or there was too little memory"
                self._found.append(Failed(job, "worker_died", detail))
        else:
            self._suspects += worker.jobs
        self._running[self._running.index(worker)] = _Worker(self._model.name, self._threads)


class _Worker:
    def __init__(self, model_name: str, threads: int) -> None:
        self.jobs: list[Job] = []
        self.alone = False
        self.started = False
        self.connection, other = Pipe()
        environment = {
            **_KEEP_MEMORY,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            # Without the current folder, where a file may have the name of a library.
            "PYTHONSAFEPATH": "1",
        }
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(other.fileno()), model_name, str(threads)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,  # Ctrl-C is for the process that stores results
            )

    def send(self, job: Job) -> None:
        self.jobs.append(job)
        with contextlib.suppress(OSError):  # it died; `next` will find out
            self.connection.send(job)

    def close(self) -> int:
        """End the process; returns its exit code."""
        self.connection.close()
        return self._process.wait()
