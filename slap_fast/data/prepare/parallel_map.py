"""Parallel map over processes: keeps the order, bounds the items in flight, and survives a worker that dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_IN_FLIGHT_PER_WORKER = 4


@dataclass(frozen=True)
class WorkerDied:
    """Stands in for a result: the worker process of this item died (crash in native code, out of memory)."""


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, workers: int
) -> Generator[tuple[T, R | WorkerDied], None, None]:
    """Yields `(item, function(item))` in the order of `items`, computed in `workers` processes (0: in this one).

    Items are drawn as results are consumed; at most 4 per worker are in flight. If a worker dies, only the item that
    killed it is lost. An exception in `function` is raised here.

    Raises:
        RuntimeError: worker processes cannot start.
    """
    if workers == 0:
        for item in items:
            yield item, function(item)
        return
    pool = _Pool(function, workers)
    try:
        for item in items:
            pool.submit(item)
            while pool.full:
                yield pool.next()
        while pool.pending:
            yield pool.next()
    finally:
        pool.close()


class _Pool(Generic[T, R]):
    def __init__(self, function: Callable[[T], R], workers: int) -> None:
        self.pending: deque[tuple[T, Future[R | WorkerDied]]] = deque()
        self._function = function
        self._workers = workers
        self._executor = _start(workers)

    @property
    def full(self) -> bool:
        return len(self.pending) >= self._workers * _IN_FLIGHT_PER_WORKER

    def submit(self, item: T) -> None:
        try:
            self.pending.append((item, self._executor.submit(self._function, item)))
        except (BrokenProcessPool, OSError) as error:
            # OSError: a worker died and the pool was torn down while this call was starting another worker.
            failed: Future[R | WorkerDied] = Future()
            failed.set_exception(BrokenProcessPool(str(error)))
            self.pending.append((item, failed))

    def next(self) -> tuple[T, R | WorkerDied]:
        if isinstance(self.pending[0][1].exception(), BrokenProcessPool):
            self._recover()
        item, future = self.pending.popleft()
        return item, future.result()

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _recover(self) -> None:
        # One death fails all tasks in flight. Run each of them again by itself, so that only the culprit is lost.
        self.close()
        alone = _start(1)
        for position, (item, future) in enumerate(self.pending):
            if not isinstance(future.exception(), BrokenProcessPool):
                continue
            again: Future[R | WorkerDied] = alone.submit(self._function, item)
            if isinstance(again.exception(), BrokenProcessPool):
                again = Future()
                again.set_result(WorkerDied())
                alone.shutdown()
                alone = _start(1)
            self.pending[position] = (item, again)
        alone.shutdown()
        self._executor = _start(self._workers)


def _start(workers: int) -> ProcessPoolExecutor:
    # spawn, because forking a process with threads (PyTorch, tqdm) can deadlock the child.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_watch_parent)
    try:
        executor.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "worker processes cannot start: call this under `if __name__ == '__main__':`, or use workers=0 "
            "(--workers 0)"
        ) from error
    return executor


def _watch_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        # A killed parent cannot stop its workers.
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
