"""Indexer: adds, updates and removes the recordings of a library, under its lock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from slap_fast.library.database import Database
from slap_fast.library.errors import LibraryError
from slap_fast.library.indexing.derived import derive
from slap_fast.library.indexing.local_engine import LocalEngine
from slap_fast.library.indexing.progress import AudioProgress
from slap_fast.library.indexing.report import IndexReport
from slap_fast.library.indexing.sources import Scan, is_below, scan
from slap_fast.library.indexing.updating import Engine, Update
from slap_fast.library.indexing.worker_pool import WorkerPool
from slap_fast.library.indexing.writer_lock import writer_lock

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

LOCAL_BYTES = 8 << 20
"""With less to read, the model is in this process: workers take seconds to start."""


DERIVE_WINDOWS = 4096
"""Windows that a watch adds before it updates the vector index; searches read newer ones from the database."""


class Indexer:
    """Changes one library, each time under its lock."""

    def __init__(
        self,
        library: Path,
        model: Callable[[], SLAP],
        model_name: str,
        *,
        check_model: Callable[[], None],
        device: str,
        workers: int | None,
    ) -> None:
        """
        Args:
            library: folder of an existing library.
            model: loads the model into this process, at the first call.
            model_name: folder or hub id of it, for workers.
            check_model: raises LibraryError if that is not the model of the library any more.
            device: `auto`, `cpu`, `cuda`, ...
            workers: processes that embed; 0: this one; None: one for each core, or this one for a GPU or little audio.

        Raises:
            LibraryError: `workers` is negative, or does not go with the device.
        """
        if workers is not None and workers < 0:
            raise LibraryError(f"workers is {workers}; pass 0 for this process alone, or a number of processes")
        if workers and device not in ("auto", "cpu"):
            raise LibraryError(f"{workers} workers embed on the CPU, not on {device}; leave one of the two out")
        self._library = library
        self._model = model
        self._model_name = model_name
        self._check_model = check_model
        self._device = device
        self._workers = workers

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        with writer_lock(self._library), Database(self._library, write=True) as database:
            yield database

    def update(self, add: Sequence[str], report: IndexReport, *, retry: bool = False, progress: bool = False) -> None:
        """Add sources and make the library equal to what is on disk.

        Args:
            add: folders, files and prepared datasets, besides those that the library has.
            report: is filled, also if this is interrupted.
            retry: also try recordings again that failed and have not changed.
            progress: show a progress bar.

        Raises:
            LibraryError: a path does not exist, has no audio, or is in the library; or another process writes.
            KeyboardInterrupt: what is embedded so far is stored.
        """
        with self._writing() as database:
            self._update(database, add, report, retry=retry, progress=progress)

    def watch(
        self,
        add: Sequence[str],
        report: IndexReport,
        *,
        seconds: float,
        started: Callable[[IndexReport], None],
        tell: Callable[[str], None],
        retry: bool = False,
        progress: bool = False,
    ) -> None:
        """As `update`, and then again and again for what changes, until KeyboardInterrupt, which this ends with.

        Args:
            add: as of `update`, as are the other arguments.
            report: of the first update.
            seconds: between the end of an update and the next look at all folders.
            started: called after the first update.
            tell: gets a line for each change, and for each thing that is wrong, when it begins.
        """
        with self._writing() as database:
            self._update(database, add, report, retry=retry, progress=progress)
            started(report)
            try:
                self._look_again(database, report, seconds, tell)
            finally:
                derive(self._library, database, self._model, progress=progress)

    def _look_again(
        self, database: Database, report: IndexReport, seconds: float, tell: Callable[[str], None]
    ) -> NoReturn:
        told = {f"failed {replace(failure, unchanged=False)}" for failure in report.failed}
        sizes: dict[tuple[str, str], int] = {}
        derived = database.last_window()
        while True:
            time.sleep(seconds)
            again = IndexReport()
            try:
                found = scan(database.folders(), os.path.abspath(self._library))
                sizes = found.hold_back(sizes, time.time_ns())
                self._apply(database, found, again, tell=tell)
                if database.last_window() - derived >= DERIVE_WINDOWS:
                    derive(self._library, database, self._model)
                    derived = database.last_window()
            except (LibraryError, OSError) as error:
                wrong = {f"failed {error}"}  # such as a full disk; the next round tries again
            else:
                wrong = {f"failed {replace(failure, unchanged=False)}" for failure in again.failed}
            for line in sorted(wrong - told):
                tell(line)
            told = wrong

    def _update(
        self, database: Database, add: Sequence[str], report: IndexReport, *, retry: bool, progress: bool
    ) -> None:
        added = [os.path.abspath(path) for path in add]
        own = os.path.abspath(self._library)
        for path in added:
            if is_below(path, own):
                raise LibraryError(f"{path}: this is in the library {own} itself; keep recordings in another folder")
        known = database.folders()
        found = scan(list(dict.fromkeys([*known, *added])), own)
        for path in added:
            if path in found.missing and path not in known:
                raise LibraryError(f"{path}: {found.missing[path].detail}")
        for path in added:
            database.add_folder(path)
        self._apply(database, found, report, retry=retry, progress=progress)
        if database.count_windows():
            derive(self._library, database, self._model, progress=progress)

    def _apply(
        self,
        database: Database,
        found: Scan,
        report: IndexReport,
        *,
        retry: bool = False,
        progress: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Make the library equal to a scan of all of its sources."""
        _explain_missing(database, found)
        with AudioProgress(shown=progress) as bar:
            update = Update(database, found, report, bar, retry=retry, tell=tell)
            engine = self._engine(update.reads)
            try:
                update.run(engine)
            finally:
                engine.close()

    def remove(self, paths: Sequence[str]) -> int:
        """Forget recordings, and the sources at or below the paths; returns how many recordings.

        Raises:
            LibraryError: the library has nothing there, or the next update would add it again.
        """
        with self._writing() as database:
            recordings = database.recordings()
            folders = database.folders()
            gone: set[int] = set()
            for given in paths:
                path = os.path.abspath(given)
                sources = [folder for folder in folders if is_below(folder, path)]
                inside = [item for item in recordings if is_below(item.path, path) or item.name == given]
                if not sources and not inside:
                    raise LibraryError(f"{path}: not in this library, which has {_listed(folders)}")
                above = [folder for folder in folders if folder not in sources and is_below(path, folder)]
                if above and any(os.path.lexists(item.path) for item in inside):
                    raise LibraryError(
                        f"{path}: it is in the indexed folder {above[0]}, so the next update would add it again; "
                        "move it out of there and update, or remove that folder"
                    )
                # Recordings first: if this is interrupted between the two, nothing stays without a source.
                numbers = {item.id for item in inside}
                database.remove_recordings(sorted(numbers - gone))
                gone |= numbers
                for folder in sources:
                    database.remove_folder(folder)
            return len(gone)

    def _engine(self, size: int) -> ClosableEngine:
        if self._workers == 0 or (self._workers is None and (size < LOCAL_BYTES or not on_cpu(self._device))):
            return LocalEngine(self._model)
        self._check_model()
        workers = self._workers or cpu_workers()
        return WorkerPool(self._model_name, workers, threads=max(1, cpu_workers() // workers))


class ClosableEngine(Engine, Protocol):
    """An engine that holds threads or processes."""

    def close(self) -> None: ...


def on_cpu(device: str) -> bool:
    """Whether a device argument means the CPU on this machine."""
    import torch

    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def cpu_workers() -> int:
    """One process for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _explain_missing(database: Database, found: Scan) -> None:
    """Name how many recordings stay in the library although their folder is not there, and what to do about it."""
    recordings = database.recordings()
    for path, failure in found.missing.items():
        count = sum(is_below(recording.path, path) for recording in recordings)
        if count:
            detail = (
                f"{failure.detail}; its {count} recordings stay in the library: mount the drive if it is on one, or "
                "forget them with --remove"
            )
            found.missing[path] = replace(failure, detail=detail)


def _listed(folders: Sequence[str]) -> str:
    return ", ".join(folders[:5]) + (f" and {len(folders) - 5} more" if len(folders) > 5 else "") or "no folders"
