"""Indexer: adds, updates and removes the recordings of a library, under its lock."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from slap_fast.errors import SlapFastError
from slap_fast.library.database import Database, Recording, State
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.indexing.derived import derive, remove_vectors, write_vectors_anew
from slap_fast.library.indexing.local_engine import LocalEngine
from slap_fast.library.indexing.progress import AudioProgress
from slap_fast.library.indexing.report import Failure, IndexReport, Removed, counted_states
from slap_fast.library.indexing.sources import Scan, and_above, is_below, scan, scan_with_new
from slap_fast.library.indexing.updating import Engine, Update
from slap_fast.library.indexing.worker_pool import WorkerPool
from slap_fast.library.indexing.writer_lock import writer_lock
from slap_fast.library.vector_index.binary_codes import MIN_WINDOWS

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)

LOCAL_BYTES = 8 << 20
"""With less to read, the model is in this process: workers take seconds to start."""


DERIVE_WINDOWS = 4096
"""Windows that a watch adds before it updates the vector index; searches read newer ones from the database."""

RECLAIMED_SHARE = 0.2
"""Share of the file of a large library that must be free, after a removal, for all of it to be written again."""


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
        warn: Callable[[str], None],
        retry: bool = False,
        progress: bool = False,
    ) -> None:
        """As `update`, and then again and again for what changes, until KeyboardInterrupt, which this ends with.

        Args:
            add: as of `update`, as are the other arguments.
            report: of the first update.
            seconds: between the end of an update and the next look at all folders.
            started: called after the first update.
            tell: gets a line for each change, and for each folder that is back.
            warn: gets a line for each thing that is wrong, when it begins.
        """
        with self._writing() as database:
            found = self._update(database, add, report, retry=retry, progress=progress)
            started(report)
            try:
                self._look_again(database, report, set(found.missing), seconds, tell, warn)
            finally:
                derive(self._library, database, self._model, progress=progress)

    def _look_again(
        self,
        database: Database,
        report: IndexReport,
        missing: set[str],
        seconds: float,
        tell: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> NoReturn:
        told = _lines(report.failed)
        sizes: dict[tuple[str, str], int] = {}
        derived = database.last_window()
        while True:
            time.sleep(seconds)
            again = IndexReport()
            try:
                found = scan(database.folders(), os.path.abspath(self._library))
                sizes = found.hold_back(sizes, time.time_ns())
                for place in sorted(place for place in missing - found.missing.keys() if os.path.exists(place)):
                    tell(f"back {place}")
                missing = set(found.missing)
                self._apply(database, found, again, tell=tell)
                if database.last_window() - derived >= DERIVE_WINDOWS:
                    derive(self._library, database, self._model)
                    derived = database.last_window()
            except (SlapFastError, OSError, MemoryError) as error:
                # Such as a full disk, or a model that is being replaced; the next round tries again.
                wrong = {**told, f"failed {error or type(error).__name__}": ""}
            else:
                wrong = _lines(again.failed)
                # In a folder that is missing now, nothing is looked at, and nothing that failed before has changed.
                wrong |= {line: name for line, name in told.items() if any(_in(name, place) for place in missing)}
            for line in sorted(wrong.keys() - told.keys()):
                warn(line)
            told = wrong

    def _update(
        self, database: Database, add: Sequence[str], report: IndexReport, *, retry: bool, progress: bool
    ) -> Scan:
        added = [os.path.abspath(path) for path in add]
        found = scan_with_new(database.folders(), added, os.path.abspath(self._library))
        for path in added:
            database.add_folder(path)
        self._apply(database, found, report, retry=retry, progress=progress)
        if database.count_windows():
            derive(self._library, database, self._model, progress=progress)
        else:
            remove_vectors(self._library)
        return found

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

    def remove(self, paths: Sequence[str]) -> Removed:
        """Forget recordings, and the sources at or below the paths, and write again what still has their embeddings.

        Raises:
            LibraryError: the library has nothing there, or the next update would add it again.
        """
        with self._writing() as database:
            recordings = database.recordings()
            folders = database.folders()
            gone: dict[int, Recording] = {}
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
                removed = {item.id: item for item in inside}
                database.remove_recordings(sorted(removed.keys() - gone.keys()))
                gone |= removed
                for folder in sources:
                    database.remove_folder(folder)
            states = Counter(item.state for item in gone.values())
            if states["complete"] or states["partial"]:
                self._reclaim(database)
            return Removed(states["complete"], states["partial"], states["failed"])

    def _reclaim(self, database: Database) -> None:
        """After a removal: embeddings of what was removed are left neither in the database nor in its index.

        Of a large library only once much is removed, because all of the rest is written again.
        """
        small = database.count_windows() < MIN_WINDOWS
        try:
            database.reclaim(least_share=0.0 if small else RECLAIMED_SHARE)
        except LibraryError as error:  # such as a full disk
            logger.warning("%s: its file keeps the space of what was removed: %s", self._library, error)
        write_vectors_anew(self._library, database, self._model, all_of_it=small)

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
    counts: dict[str, Counter[State]] = defaultdict(Counter)
    for item in database.recordings():
        for place in and_above(item.path):
            if place in found.missing:
                counts[place][item.state] += 1
    for path, states in counts.items():
        failure = found.missing[path]
        stay, them = ("stay", "them") if states.total() > 1 else ("stays", "it")
        detail = (
            f"{failure.detail}; its {counted_states(states)} {stay} in the library: mount the drive if it is on one, "
            f"or forget {them} with --remove"
        )
        found.missing[path] = replace(failure, detail=detail)


def _lines(failures: Sequence[Failure]) -> dict[str, str]:
    """What a watch prints for failures, and their names."""
    return {f"failed {replace(failure, unchanged=False)}": failure.name for failure in failures}


def _in(name: str, place: str) -> bool:
    """Whether a recording is in a folder or dataset."""
    return name.startswith((place.rstrip(os.sep) + os.sep, place + "#"))


def _source_of(item: Recording, sources: set[str]) -> str | None:
    """Which of these sources has a recording that is on disk. A dataset is not entered from a folder that it is in."""
    places = [item.path] if item.member else and_above(item.path)
    found = next((place for place in places if place in sources), None)
    return found if found is not None and os.path.exists(item.path) else None


def _listed(folders: Sequence[str]) -> str:
    return ", ".join(folders[:5]) + (f" and {len(folders) - 5} more" if len(folders) > 5 else "") or "no folders"
