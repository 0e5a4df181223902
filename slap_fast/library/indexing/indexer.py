"""Indexer: adds, updates and removes the recordings of a library, under its lock."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from slap_fast.errors import SlapFastError
from slap_fast.library.database import Database, Recording
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.indexing.derived import derive
from slap_fast.library.indexing.local_engine import LocalEngine
from slap_fast.library.indexing.progress import AudioProgress
from slap_fast.library.indexing.report import IndexReport
from slap_fast.library.indexing.sources import Scan, and_above, is_below, scan
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
        identity: ModelIdentity,
        *,
        check_model: Callable[[], None],
        device: str,
        workers: int | None,
    ) -> None:
        """
        Args:
            library: folder of an existing library.
            model: loads the model into this process, at the first call.
            identity: of the model of the library, for workers.
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
        self._identity = identity
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
            except (SlapFastError, OSError, MemoryError) as error:
                # Such as a full disk, or a model that is being replaced; the next round tries again.
                wrong = {f"failed {error or type(error).__name__}"}
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
            engine = self.engine(update)
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
                inside = [item for item in recordings if is_below(item.path, path) or item.name in (given, path)]
                if not sources and not inside:
                    raise LibraryError(f"{path}: not in this library, which has {_listed(folders)}")
                kept = set(folders) - set(sources)
                above = next((source for item in inside if (source := _source_of(item, kept))), None)
                if above is not None:
                    raise LibraryError(
                        f"{path}: it is in {above}, which is indexed, so the next update would add it again; "
                        "move it out of there and update, or remove all of that"
                    )
                # Recordings first: if this is interrupted between the two, nothing stays without a source.
                numbers = {item.id for item in inside}
                database.remove_recordings(sorted(numbers - gone))
                gone |= numbers
                for folder in sources:
                    database.remove_folder(folder)
            return len(gone)

    def engine(self, update: Update) -> ClosableEngine:
        """What embeds the recordings of an update; nothing of it runs yet."""
        # What killed a worker before would kill this process.
        little = update.reads < LOCAL_BYTES and not update.dangerous
        if self._workers == 0 or (self._workers is None and (little or not on_cpu(self._device))):
            return LocalEngine(self._model)
        self._check_model()
        workers = self._workers or cpu_workers()
        return WorkerPool(self._identity, workers, threads=max(1, cpu_workers() // workers))


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
    if not found.missing:
        return
    counts = Counter(
        place for item in database.recordings() for place in and_above(item.path) if place in found.missing
    )
    for path, count in counts.items():
        failure = found.missing[path]
        stay, them = ("recordings stay", "them") if count > 1 else ("recording stays", "it")
        detail = (
            f"{failure.detail}; its {count} {stay} in the library: mount the drive if it is on one, or forget {them} "
            "with --remove"
        )
        found.missing[path] = replace(failure, detail=detail)


def _source_of(item: Recording, sources: set[str]) -> str | None:
    """Which of these sources has a recording that is on disk. A dataset is not entered from a folder that it is in."""
    places = [item.path] if item.member else and_above(item.path)
    found = next((place for place in places if place in sources), None)
    return found if found is not None and os.path.exists(item.path) else None


def _listed(folders: Sequence[str]) -> str:
    return ", ".join(folders[:5]) + (f" and {len(folders) - 5} more" if len(folders) > 5 else "") or "no folders"
