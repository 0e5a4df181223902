"""Engine in the calling process: threads decode, the model embeds in the thread of the caller."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator

from slap_fast.library.indexing.embedding import AudioModel, embed_jobs
from slap_fast.library.indexing.jobs import Embedded, Event, Job

_GPU_THREADS = 4  # that decode
_JOBS = 3 * _GPU_THREADS


class LocalEngine:
    """For a GPU, where one process packs the windows of several recordings, and for a few recordings on a CPU."""

    workers = 1

    def __init__(self, model: Callable[[], AudioModel]) -> None:
        """
        Args:
            model: loads it, when the first result is asked for.
        """
        self.pending = 0
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._model = model
        self._events: Generator[list[Event], None, None] | None = None

    @property
    def full(self) -> bool:
        return self.pending >= _JOBS

    def submit(self, job: Job, left: int = 0) -> None:
        self.pending += 1
        self._jobs.put(job)

    def next(self) -> list[Event]:
        if self._events is None:
            model = self._model()
            threads = 1 if model.device.type == "cpu" else _GPU_THREADS
            self._events = embed_jobs(model, iter(self._jobs.get, None), threads=threads)
        events = next(self._events)
        self.pending -= sum(not isinstance(event, Embedded) for event in events)
        return events

    def close(self) -> None:
        """End the threads; jobs that are not done are forgotten."""
        for _ in range(_GPU_THREADS):
            self._jobs.put(None)
        if self._events is not None:
            self._events.close()
