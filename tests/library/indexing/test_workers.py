"""Worker processes, the lock, interrupts, and kills of an indexing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.indexing.jobs import Embedded, Event, Failed, Finished, Job
from slap_fast.library.indexing.report import IndexReport, Kept
from slap_fast.library.indexing.worker_pool import WorkerPool
from slap_fast.library.indexing.writer_lock import writer_lock
from slap_fast.library.library import Library
from tests.drills.indexing import Indexing, Rows, kill_once, read_rows
from tests.library.indexing.conftest import Write
from tests.models.saved import tiny_slap


def test_workers_give_the_rows_of_one_process_and_one_that_dies_costs_the_recording_that_killed_it(
    tmp_path: Path, library: Library, model_folder: Path, write: Write
) -> None:
    others = _children()
    paths = [write("a.wav", 12.0, 1), write("b.wav", 185.0, 2)]
    library.add(*paths, workers=0)
    model = shutil.copytree(model_folder, tmp_path / "model")
    pool = WorkerPool(ModelIdentity.of(str(model)), 1)
    try:
        pool.submit(Job(0, str(paths[0])))
        for part in range(2):  # as for two workers that share it
            pool.submit(Job(1, str(paths[1]), part=part, parts=2))
        _check_rows(_events(pool), read_rows(library.path)[0])

        pool.submit(Job(2, str(write("long.wav", 300.0))))  # several calls of the model
        ended = pool.next()
        assert isinstance(ended[0], Embedded)
        (process,) = _children() - others
        os.kill(process, signal.SIGKILL)
        ended += _events(pool)
        assert [event.job.number for event in ended if isinstance(event, Finished)] == [2]
        assert not any(isinstance(event, Failed) for event in ended)

        # The one that takes its place must not embed with another model.
        tiny_slap(layers=2).save_pretrained(model)
        for process in _children() - others:  # none if the one that was killed had just ended its job
            os.kill(process, signal.SIGKILL)
        pool.submit(Job(3, str(paths[0])))
        with pytest.raises(LibraryError, match="the model was replaced by another one"):
            pool.next()
    finally:
        pool.close()
    assert not _children() - others


def _events(pool: WorkerPool) -> list[Event]:
    """All until every job has ended."""
    events: list[Event] = []
    while pool.pending:
        events += pool.next()
    return events


def _check_rows(events: list[Event], expected: Rows) -> None:
    given: Rows = {}
    for event in events:
        if isinstance(event, Embedded):
            given |= {(event.job.path, row.start, row.end, row.whole): row.embedding for row in event.rows}
        elif isinstance(event, Finished) and event.whole is not None:
            row = event.whole
            given[event.job.path, row.start, row.end, row.whole] = row.embedding
    assert given.keys() == expected.keys()
    for key, embedding in expected.items():
        np.testing.assert_allclose(given[key], embedding, atol=1e-6)
    assert len({event.job.part for event in events if isinstance(event, Embedded) and event.job.number == 1}) == 2


def test_a_second_writer_is_told_of_the_first_and_a_killed_one_leaves_no_lock(library: Library, write: Write) -> None:
    path = write("a.wav")
    code = (
        "import sys, time; from pathlib import Path; from slap_fast.library.indexing.writer_lock import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])):\n    print('locked', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, library.path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        for change in (library.add, library.remove):
            with pytest.raises(LibraryError, match=f"process {process.pid} on .* is changing this library"):
                change(path)
        process.kill()
    assert library.add(path).new == 1
    with writer_lock(library.path):
        pass


def test_an_interrupt_keeps_what_is_embedded_and_the_next_update_goes_on_inside_the_recording(
    library: Library, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("long.wav", 900.0)
    encode, encoded = library.model.encode_audio, 0

    def interrupted(clips: list[np.ndarray], **options: Any) -> Any:
        nonlocal encoded
        if encoded > 130:
            raise KeyboardInterrupt
        encoded += len(clips)
        return encode(clips, **options)

    monkeypatch.setattr(library.model, "encode_audio", interrupted)
    report = IndexReport()
    with pytest.raises(KeyboardInterrupt):
        library.add(path, workers=0, report=report)
    assert report.interrupted
    assert report.kept == [Kept(str(path), 5.0 * encoded + 5, 900.0)]
    assert report.new == 0
    assert len(library) == 0
    before, encoded = encoded, -1000
    # The name does not matter: the content is known.
    path = path.rename(path.with_name("renamed.wav"))
    assert library.add(path.parent, workers=0).new == 1
    assert before + encoded + 1000 == 179
    (embedding,) = library.embeddings()[1]
    monkeypatch.undo()
    np.testing.assert_array_equal(embedding, library.model.encode_audio([path])[0].numpy())


def test_a_watch_sees_changes_and_ends_by_an_interrupt(library: Library, sounds: Path, write: Write) -> None:
    write("a.wav", seed=1)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("new "):
            os.rename(sounds / "b.wav", sounds / "c.wav")
        elif line.startswith("renamed "):
            sounds.rename(sounds.with_name("unmounted"))
        else:
            raise KeyboardInterrupt

    def started(report: IndexReport) -> None:
        assert report.new == 1
        path = write("b.wav", seed=2)
        os.utime(path, (time.time() - 5, time.time() - 5))

    with pytest.raises(KeyboardInterrupt):
        library.watch(sounds, seconds=0.01, tell=tell, started=started)
    b, c = sounds / "b.wav", sounds / "c.wav"
    assert lines[:2] == [f"new {b}", f"renamed {b} to {c}"]
    assert lines[2].startswith(f"failed {sounds}: folder_missing")
    assert len(library) == 2


def test_a_kill_leaves_a_library_that_is_whole_and_goes_on(tmp_path: Path, empty_library: Path) -> None:
    # `python -m tests.drills.indexing` does this 50 times, at random moments, also to workers.
    indexing = Indexing(tmp_path, short=4, long_seconds=900, text=empty_library / "text", in_process=True)
    # A machine that is less busy than others may be done before the kill.
    outcomes = (kill_once(indexing, "writer", random.Random(0), after=0.05) for _ in range(10))
    assert next(outcome for outcome in outcomes if outcome["hit"])["code"] == -signal.SIGKILL
    with Library(indexing.library) as library:
        library.update(workers=0)
    indexing.check(complete=True)


def _children() -> set[int]:
    """Running child processes of this one."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and fields[0] != "Z":
                found.add(int(folder.name))
    return found
