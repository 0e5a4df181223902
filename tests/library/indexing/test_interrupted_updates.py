"""Updates that end, and recordings that change and move, at the worst moment; with windows that name themselves."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from slap_fast.library.database import Database, WindowRow
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.indexing.indexer import Indexer
from slap_fast.library.indexing.jobs import GROUP, Embedded, Event, Failed, Finished, Job
from slap_fast.library.indexing.local_engine import LocalEngine
from slap_fast.library.indexing.progress import AudioProgress
from slap_fast.library.indexing.report import IndexReport
from slap_fast.library.indexing.sources import scan
from slap_fast.library.indexing.updating import SHARED_BYTES, Update
from slap_fast.library.indexing.worker_pool import WorkerPool
from tests.library.indexing.test_updates import counts
from tests.models.saved import tiny_slap


class Script:
    """An engine of recordings of some length, that does what a test says at an event."""

    full = False

    def __init__(
        self,
        windows: Callable[[Job], int],
        at: Callable[[Event], Event] = lambda event: event,
        *,
        workers: int = 1,
        batch: int = 1,
    ) -> None:
        self.workers = workers
        self._batch = batch
        self.pending = 0
        self._windows = windows
        self._at = at
        self._events: list[Event] = []

    def submit(self, job: Job, left: int) -> None:
        self.pending += 1
        count = self._windows(job)
        for first in range(0, count, GROUP):
            wanted = [number for number in range(first, min(first + GROUP, count)) if job.wants(number)]
            if wanted:
                rows = [WindowRow(number * 5.0, number * 5.0 + 10, False, _vector(number)) for number in wanted]
                self._events.append(Embedded(job, wanted[0], rows, None))
        self._events.append(Finished(job, count, count * 5.0 + 5, None))

    def next(self) -> list[Event]:
        events = [self._at(self._events.pop(0)) for _ in range(min(self._batch, len(self._events)))]
        self.pending -= sum(not isinstance(event, Embedded) for event in events)
        return events


class Interrupted(Database):
    """Is interrupted after windows were stored."""

    def add_partial_windows(self, recording: int, windows: Sequence[WindowRow], seconds: float) -> None:
        super().add_partial_windows(recording, windows, seconds)
        raise KeyboardInterrupt


def _vector(number: int) -> np.ndarray:
    return np.array([number + 1, 0, 0, 0], np.float32)


def _interrupt_after(windows: int) -> Callable[[Event], Event]:
    def at(event: Event) -> Event:
        if isinstance(event, Embedded) and event.first >= windows:
            raise KeyboardInterrupt
        return event

    return at


@pytest.fixture
def database(tmp_path: Path) -> Database:
    meta = {"width": 4, "model": {"name": "none", "weights": "none"}}
    return Database.create(tmp_path / "library", meta)


def _update(database: Database, folder: Path, engine: Any, *, retry: bool = False) -> IndexReport:
    report = IndexReport()
    with AudioProgress(shown=False) as progress:
        Update(database, scan([str(folder)], "/none"), report, progress, retry=retry).run(engine)
    return report


def _states(database: Database) -> dict[str, str]:
    return {os.path.basename(recording.path): recording.state for recording in database.recordings()}


def _starts(database: Database, table: str = "windows") -> list[float]:
    with sqlite3.connect(database.path) as connection:
        return [start for (start,) in connection.execute(f"SELECT start FROM {table} ORDER BY rowid")]


def test_windows_are_stored_once_whenever_an_update_is_interrupted(database: Database, sounds: Path) -> None:
    (sounds / "long.wav").write_bytes(b"a")
    for stored in (120, 240):
        with Interrupted(database.path.parent, write=True) as interrupted, pytest.raises(KeyboardInterrupt):
            _update(interrupted, sounds, Script(lambda job: 300))
        assert _starts(database, "partial_windows") == [5.0 * number for number in range(stored)]
    with sqlite3.connect(database.path) as connection:  # as an earlier version left them
        connection.execute("INSERT INTO partial_windows SELECT * FROM partial_windows")
    assert counts(_update(database, sounds, Script(lambda job: 300))) == {"new": 1}
    assert _starts(database) == [5.0 * number for number in range(300)]


def test_what_an_interrupted_batch_has_stored_stays_and_is_counted(database: Database, sounds: Path) -> None:
    for name in "abc":
        (sounds / f"{name}.wav").write_bytes(name.encode())

    class InterruptedAtTheSecond(Database):
        def store_recording(self, path: str, *args: Any, **kwargs: Any) -> int:
            if path.endswith("b.wav"):
                raise KeyboardInterrupt
            return super().store_recording(path, *args, **kwargs)

    report = IndexReport()
    with (
        InterruptedAtTheSecond(database.path.parent, write=True) as interrupted,
        AudioProgress(shown=False) as progress,
    ):
        update = Update(interrupted, scan([str(sounds)], "/none"), report, progress)
        with pytest.raises(KeyboardInterrupt):
            update.run(Script(lambda job: 1, batch=6))
    assert (report.new, report.interrupted) == (1, True)
    assert _states(database) == {"a.wav": "complete"}
    assert counts(_update(database, sounds, Script(lambda job: 1, batch=6))) == {"new": 2, "unchanged": 1}


def test_a_batch_that_cannot_be_stored_is_taken_back_and_the_reason_is_told(database: Database, sounds: Path) -> None:
    for name in "abc":
        (sounds / f"{name}.wav").write_bytes(name.encode())

    class Full(Database):
        def store_recording(self, path: str, *args: Any, **kwargs: Any) -> int:
            if path.endswith("c.wav"):
                raise LibraryError("the disk is full")
            return super().store_recording(path, *args, **kwargs)

    class Together(Script):
        def next(self) -> list[Event]:
            self._events.sort(key=lambda event: isinstance(event, Finished))
            return super().next()

    report = IndexReport()
    with Full(database.path.parent, write=True) as full, AudioProgress(shown=False) as progress:
        update = Update(full, scan([str(sounds)], "/none"), report, progress)
        engine = Together(lambda job: 300 if job.path.endswith("b.wav") else 1, batch=100)
        with pytest.raises(LibraryError, match="the disk is full"):
            update.run(engine)
    assert (report.new, report.kept, _states(database)) == (0, [], {})


def test_the_progress_begins_where_an_interrupted_update_ended(database: Database, sounds: Path) -> None:
    soundfile.write(sounds / "long.wav", np.zeros(150_500), 100)  # 1505 s: 300 windows
    (sounds / "short.wav").write_bytes(b"b" * 1000)
    size = (sounds / "long.wav").stat().st_size
    windows = lambda job: 300 if "long" in job.path else 1  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        _update(database, sounds, Script(windows, _interrupt_after(240)))
    events: list[tuple[int, ...]] = []

    class Recorder(AudioProgress):
        def begin(self, size: int, done: int) -> None:
            events.append((size, done))

        def read(self, size: int) -> None:
            events.append((size,))

    report = IndexReport()
    Update(database, scan([str(sounds)], "/none"), report, Recorder(shown=False)).run(Script(windows))
    assert report.new == 2
    (total, done), *reads = events
    assert done == pytest.approx(size * 1205 / 1505, abs=1)
    assert done + sum(read for (read,) in reads) == total == size + 1000


def test_a_complete_version_is_searched_until_the_next_one_is_complete(database: Database, sounds: Path) -> None:
    path = sounds / "long.wav"
    path.write_bytes(b"first")
    _update(database, sounds, Script(lambda job: 300))

    def rewrite(event: Event) -> Event:
        if isinstance(event, Finished):
            path.write_bytes(path.read_bytes() * 2)
        return event

    def fail(event: Event) -> Event:
        rewrite(Finished(event.job, 0, 0.0, None))
        return Failed(event.job, "truncated", "it ends in the middle")

    path.write_bytes(b"second")
    with pytest.raises(KeyboardInterrupt):
        _update(database, sounds, Script(lambda job: 400, _interrupt_after(250)))
    for at in (rewrite, fail):
        (failure,) = _update(database, sounds, Script(lambda job: 400, at)).failed
        assert failure.reason == "changed_while_read"
        assert (_states(database), database.count_windows()) == ({"long.wav": "complete"}, 300)
    # Nor does what was stored of it under another name take its place before.
    (sounds / "other.wav").write_bytes(b"third")
    with pytest.raises(KeyboardInterrupt):
        _update(database, sounds, Script(lambda job: 400, _interrupt_after(250)))
    assert _states(database) == {"long.wav": "complete", "other.wav": "partial"}
    os.replace(sounds / "other.wav", path)
    with pytest.raises(KeyboardInterrupt):
        _update(database, sounds, Script(lambda job: 400, _interrupt_after(0)))
    assert database.count_windows() == 300
    assert counts(_update(database, sounds, Script(lambda job: 400)))["changed"] == 1
    assert (_states(database), _starts(database)) == ({"long.wav": "complete"}, [5.0 * n for n in range(400)])


def test_recordings_that_take_each_others_names_after_an_interrupt_are_all_there(
    database: Database, sounds: Path
) -> None:
    for name in ("q", "r"):
        (sounds / f"{name}.wav").write_bytes(name.encode() * 100)
    _update(database, sounds, Script(lambda job: 3))
    (sounds / "p.wav").write_bytes(b"p")
    with pytest.raises(KeyboardInterrupt):
        _update(database, sounds, Script(lambda job: 400, _interrupt_after(200)))
    os.replace(sounds / "q.wav", sounds / "r.wav")
    os.replace(sounds / "p.wav", sounds / "q.wav")
    _update(database, sounds, Script(lambda job: 400 if job.path.endswith("q.wav") else 3))
    assert _states(database) == {"q.wav": "complete", "r.wav": "complete"}
    assert counts(_update(database, sounds, Script(lambda job: 0))) == {"unchanged": 2}


def test_a_recording_that_grows_while_several_read_it_is_read_again(database: Database, sounds: Path) -> None:
    path = sounds / "growing.wav"
    path.write_bytes(b"a")
    os.truncate(path, SHARED_BYTES + 1)

    def grow(event: Event) -> Event:
        os.truncate(path, SHARED_BYTES + 2)
        return event

    for at, detail in ((lambda event: event, "its length differs"), (grow, "it changed while it was read")):
        report = _update(database, sounds, Script(lambda job: 300 + 24 * job.part, at, workers=2))
        assert [(failure.reason, failure.detail.startswith(detail)) for failure in report.failed] == [
            ("changed_while_read", True)
        ]
        assert not database.recordings()
    assert counts(_update(database, sounds, Script(lambda job: 324, workers=2))) == {"new": 1}
    assert all(before < after for before, after in pairwise(_starts(database)))


def test_what_killed_a_worker_is_not_read_by_the_command_itself(database: Database, sounds: Path) -> None:
    (sounds / "deadly.wav").write_bytes(b"deadly")
    _update(database, sounds, Script(lambda job: 1, lambda event: Failed(event.job, "worker_died", "SIGSEGV")))
    identity = ModelIdentity("none", "none")
    indexer = Indexer(database.path.parent, tiny_slap, identity, check_model=lambda: None, device="cpu", workers=None)

    def engine(*, retry: bool = False) -> type:
        with AudioProgress(shown=False) as progress:
            update = Update(database, scan([str(sounds)], "/none"), IndexReport(), progress, retry=retry)
        return type(indexer.engine(update))

    (failure,) = _update(database, sounds, Script(lambda job: 1)).failed
    assert failure.unchanged
    assert engine() is LocalEngine
    assert engine(retry=True) is WorkerPool
    os.rename(sounds / "deadly.wav", sounds / "renamed.wav")
    assert engine() is WorkerPool
