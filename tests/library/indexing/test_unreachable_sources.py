"""Drives that are gone, folders that cannot be entered, links to nothing, and datasets and models that are replaced."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from slap_fast.audio.errors import AudioError
from slap_fast.data.format.index import ClipIndex
from slap_fast.library.database import Database
from slap_fast.library.errors import LibraryError
from slap_fast.library.indexing.decoding import Decoder, End
from slap_fast.library.indexing.jobs import Event, Job
from slap_fast.library.indexing.local_engine import LocalEngine
from slap_fast.library.indexing.progress import AudioProgress
from slap_fast.library.indexing.report import IndexReport
from slap_fast.library.indexing.sources import scan
from slap_fast.library.indexing.updating import Update
from slap_fast.library.library import Library
from slap_fast.library.recording_audio import read_clip, read_moment
from tests.data.builders import StoredClip, encode, write_dataset
from tests.library.indexing.conftest import Write
from tests.library.indexing.test_updates import counts, paths, rows
from tests.models.saved import tiny_slap


def _dataset(folder: Path, *seeds: int) -> None:
    """Prepares a dataset whose clips have the keys clip-0, clip-1, ..., in place of another one."""
    shutil.rmtree(folder, ignore_errors=True)
    noise = [(np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000) * 32767).astype(np.int16) for seed in seeds]
    write_dataset(folder, [StoredClip(encode(pcm), len(pcm), 1, b'{"captions": ["a"]}') for pcm in noise])


@contextmanager
def _unprivileged() -> Iterator[None]:
    """Permissions bind, also if the tests run as the superuser."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_folders_that_cannot_be_entered_are_named_and_nothing_in_them_is_gone() -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        inner = top / "locked" / "inner"
        inner.mkdir(parents=True)
        for file in (top / "a.wav", top / "locked" / "b.wav", top / "locked" / "notes.txt", inner / "c.wav"):
            file.write_bytes(b"sound")
        (top / "loop.wav").symlink_to("loop.wav")
        os.chmod(top, 0o755)
        os.chmod(top / "locked", 0o644)  # it can be listed, and that is all
        try:
            with _unprivileged():
                found = scan([name, str(inner), str(top / "locked" / "b.wav")], "/none")
        finally:
            os.chmod(top / "locked", 0o755)
        assert list(found.found) == [(str(top / "a.wav"), "")]
        assert {(os.path.relpath(path, top), failure.reason) for path, failure in found.missing.items()} == {
            ("locked", "unreadable_folder"),
            ("locked/inner", "unreadable"),
            ("locked/b.wav", "unreadable"),
            ("loop.wav", "unreadable"),
        }
        for path in ("locked/b.wav", "locked/inner/c.wav", "loop.wav"):
            assert not found.covers(str(top / path))
        assert found.covers(str(top / "gone.wav"))
        assert not found.ignored


def test_what_is_behind_a_link_to_nothing_stays_and_can_be_removed(
    library: Library, sounds: Path, tmp_path: Path, write: Write
) -> None:
    write("kept.wav", seed=1)
    shutil.move(write("drive/far.wav", seed=2).parent, tmp_path / "drive")
    (sounds / "folder").symlink_to(tmp_path / "drive")
    (sounds / "one.wav").symlink_to(tmp_path / "one")
    shutil.move(write("three.wav", seed=3), tmp_path / "one")
    assert counts(library.add(sounds)) == {"new": 3}
    shutil.move(tmp_path / "drive", tmp_path / "unmounted")
    (tmp_path / "one").unlink()
    for _ in range(2):
        report = library.update()
        assert counts(report) == {"unchanged": 1, "failed": 2}
        assert {(os.path.relpath(failure.name, sounds), failure.reason) for failure in report.failed} == {
            ("folder", "missing_file"),
            ("one.wav", "missing_file"),
        }
        assert all("its 1 recording stays in the library" in failure.detail for failure in report.failed)
        assert len(paths(library)) == 3
    assert library.remove(sounds / "one.wav").recordings == 1
    shutil.move(tmp_path / "unmounted", tmp_path / "drive")
    assert counts(library.update()) == {"unchanged": 2, "failed": 1}


def test_a_dataset_that_is_prepared_again_while_it_is_read_has_the_embeddings_of_its_own_clips(
    library: Library, sounds: Path
) -> None:
    data = sounds / "data"
    _dataset(data, 1, 2, 3)

    class Replacing(LocalEngine):
        """Clips are read when all have been hashed, and the dataset is another one then."""

        seeds: tuple[int, ...] = ()

        def next(self) -> list[Event]:
            if self.seeds:
                _dataset(data, *self.seeds)
                self.seeds = ()
            return super().next()

    with Database(library.path, write=True) as database:
        database.add_folder(str(data))
        for seeds in ((4, 5), (5, 6)):
            engine, report = Replacing(lambda: library.model), IndexReport()
            engine.seeds = seeds
            with AudioProgress(shown=False) as progress:
                Update(database, scan([str(data)], "/none"), report, progress).run(engine)
            engine.close()
            assert {failure.reason for failure in report.failed} == {"changed_while_read"}
            assert not database.recordings()
    assert counts(library.update()) == {"new": 2}
    for (path, member, *_), embedding in rows(library).items():
        samples = read_moment(os.fsdecode(path), member, 0.0, 1.0, 16_000)
        expected = library.model.encode_audio([samples], sampling_rate=16_000)[0].numpy()
        np.testing.assert_allclose(embedding, expected, atol=1e-6)
    with pytest.raises(AudioError, match="replaced while it was read"):
        read_clip(ClipIndex.open(data), 0, "clip-1")
    # In a folder that is indexed it is a source of its own, and its clips are no sources.
    library.add(data)
    soundfile.write(sounds / "a.wav", np.zeros(1000), 16_000)
    library.add(sounds)
    for clip in (f"{data}#clip-0", os.path.relpath(f"{data}#clip-0")):
        with pytest.raises(LibraryError, match=f"it is in {data}, which is indexed, so the next update would add it"):
            library.remove(clip)
    assert library.remove(data).recordings == 2
    assert counts(library.update()) == {"unchanged": 1}


def test_a_thread_that_waits_for_jobs_does_not_keep_others_from_opening_a_dataset(tmp_path: Path) -> None:
    _dataset(tmp_path / "data", 1, 2)
    ended = threading.Event()

    def jobs() -> Iterator[Job]:
        time.sleep(0.1)  # the other threads wait for their turn by then, most likely
        yield Job(0, str(tmp_path / "data"), "clip-0", 0)
        assert ended.wait(20), "the first job does not end while another thread waits for the second one"
        yield Job(1, str(tmp_path / "data"), "clip-1", 1)

    decoder = Decoder(jobs(), 16_000, 10.0, 4)
    numbers = []
    while taken := decoder.take(1):
        numbers += [item.job.number for item in taken if isinstance(item, End)]
        if numbers:
            ended.set()
    assert numbers == [0, 1]


def test_a_model_that_is_damaged_ends_no_watch_and_one_that_is_replaced_no_update_without_new_recordings(
    tmp_path: Path, empty_library: Path, model_folder: Path, sounds: Path, write: Write
) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    Library(tmp_path / "library", model=model).close()
    shutil.copytree(empty_library / "text", tmp_path / "library" / "text")
    config = (model / "config.json").read_text()
    lines: list[str] = []

    def started(report: IndexReport) -> None:
        (model / "config.json").write_text("{")
        os.utime(write("a.wav"), (1, 1))

    def tell(line: str) -> None:
        lines.append(line)
        if len(lines) > 1:
            raise KeyboardInterrupt
        (model / "config.json").write_text(config)

    library = Library(tmp_path / "library")
    (sounds / "broken.wav").write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        library.watch(sounds, seconds=0.01, tell=tell, started=started, workers=0)
    assert lines[0].startswith("failed ")
    assert "config.json" in lines[0]
    assert lines[1] == f"new {sounds / 'a.wav'}"

    tiny_slap(layers=2).save_pretrained(model)
    shutil.rmtree(library.path / "text")
    library = Library(library.path)
    assert counts(library.update()) == {"unchanged": 1, "failed": 1}  # searches are slower, that is all
