"""Engine in the calling process: threads decode, the model embeds in the thread of the caller."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator

from slap_fast.library.indexing.embedding import AudioModel, embed_jobs
from slap_fast.library.indexing.jobs import Embedded, Event, Job

_JOBS_PER_THREAD = 3


class LocalEngine:
    """For a GPU, where one process packs the windows of several recordings, and for a few recordings on a CPU."""

    workers = 1

    def __init__(self, model: Callable[[], AudioModel], *, threads: int) -> None:
        """
        Args:
            model: loads it, at the first job.
            threads: that decode.
        """
        self.pending = 0
        self._limit = threads * _JOBS_PER_THREAD
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._threads = threads
        self._model = model
        self._events: Generator[Event, None, None] | None = None

    @property
    def full(self) -> bool:
        return self.pending >= self._limit

    def submit(self, job: Job) -> None:
        self.pending += 1
        self._jobs.put(job)

    def next(self) -> Event:
        if self._events is None:
            self._events = embed_jobs(self._model(), iter(self._jobs.get, None), threads=self._threads)
        event = next(self._events)
        if not isinstance(event, Embedded):
            self.pending -= 1
        return event

    def close(self) -> None:
        """End the threads; jobs that are not done are forgotten."""
        for _ in range(self._threads):
            self._jobs.put(None)
        if self._events is not None:
            self._events.close()
