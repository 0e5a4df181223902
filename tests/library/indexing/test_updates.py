"""Updates of a library: what is embedded, kept, followed, dropped and named, as files come, change, move and go."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slap_fast.audio.waveform import load_audio
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare.pipeline import prepare
from slap_fast.library.errors import LibraryError
from slap_fast.library.indexing.report import IndexReport, Removed
from slap_fast.library.library import Library
from tests.library.indexing.conftest import Write
from tests.models.saved import tiny_slap


def counts(report: IndexReport) -> dict[str, int]:
    """What an update did, without zeros."""
    names = ("new", "changed", "renamed", "copied", "touched", "unchanged", "dropped")
    found = {name: getattr(report, name) for name in names} | {"failed": len(report.failed)}
    return {name: count for name, count in found.items() if count}


def rows(library: Library) -> dict[tuple[Any, ...], np.ndarray]:
    """Embeddings of windows by path, key, start, end and whole."""
    with sqlite3.connect(library.path / "library.sqlite") as connection:
        found = connection.execute(
            "SELECT path, member, start, end, whole, windows.embedding FROM windows "
            "JOIN recordings ON recordings.id = recording"
        ).fetchall()
    table = {tuple(row[:5]): np.frombuffer(row[5], np.float32) for row in found}
    assert len(table) == len(found)
    return table


def paths(library: Library) -> list[str]:
    return [recording.path for recording in library.recordings()]


def test_rows_and_recordings_are_what_encode_audio_gives(library: Library, sounds: Path, write: Write) -> None:
    seconds = {"short": 3.0, "exact": 10.0, "between": 12.3, "limit": 30.0, "above": 30.5, "long": 61.0}
    for seed, (name, length) in enumerate(seconds.items()):
        write(f"{name}.wav", length, seed)
    assert counts(library.add(sounds)) == {"new": 6}
    for (path, _, start, end, _), embedding in rows(library).items():
        samples = load_audio(os.fsdecode(path))[round(start * 16_000) : round(end * 16_000)]
        expected = library.model.encode_audio([samples], sampling_rate=16_000)[0].numpy()
        np.testing.assert_array_equal(embedding, expected)
    spans: dict[str, list[tuple[float, float, int]]] = {}
    for path, _, start, end, whole in sorted(rows(library)):
        spans.setdefault(Path(os.fsdecode(path)).stem, []).append((start, end, whole))
    assert spans["short"] == [(0, 3, 1)]
    assert spans["exact"] == [(0, 10, 1)]
    assert spans["between"] == [(0, 10, 0), (0, 12.3, 1), (2.3, 12.3, 0)]
    assert [span for span in spans["limit"] if span[2]] == [(0, 30, 1)]
    assert [span[:2] for span in spans["above"]] == [(0, 10), (5, 15), (10, 20), (15, 25), (20, 30), (20.5, 30.5)]
    assert not any(span[2] for span in spans["above"] + spans["long"])
    recordings, embeddings = library.embeddings()
    expected = library.model.encode_audio([recording.path for recording in recordings]).numpy()
    np.testing.assert_array_equal(embeddings, expected)


def test_an_update_embeds_what_is_new_or_changed_and_follows_the_rest(
    library: Library, sounds: Path, write: Write
) -> None:
    for seed, name in enumerate(("same", "touched", "changed", "renamed", "gone")):
        write(f"{name}.wav", seed=seed)
    assert counts(library.add(sounds)) == {"new": 5}
    before = rows(library)
    os.utime(sounds / "touched.wav", (1, 11e9))  # the year 2318: its nanoseconds need 65 bits
    write("changed.wav", seed=10)
    (sounds / "b").mkdir()
    os.rename(sounds / "renamed.wav", sounds / "b" / "renamed.wav")
    os.remove(sounds / "gone.wav")
    shutil.copy(sounds / "same.wav", sounds / "a copy.wav")
    write("new 1.wav", seed=11)
    write("new 2.wav", seed=11)
    expected = {"new": 1, "changed": 1, "renamed": 1, "copied": 2, "touched": 1, "unchanged": 1, "dropped": 1}
    assert counts(library.update()) == expected
    after = {os.path.relpath(os.fsdecode(key[0]), sounds): value for key, value in rows(library).items()}
    old = {os.path.relpath(os.fsdecode(key[0]), sounds): value for key, value in before.items()}
    assert after.keys() == {
        "same.wav", "touched.wav", "changed.wav", "b/renamed.wav", "a copy.wav", "new 1.wav", "new 2.wav"
    }  # fmt: skip
    for name, source in (("b/renamed.wav", "renamed.wav"), ("a copy.wav", "same.wav"), ("touched.wav", "touched.wav")):
        np.testing.assert_array_equal(after[name], old[source])
    np.testing.assert_array_equal(after["new 1.wav"], after["new 2.wav"])
    assert not np.array_equal(after["changed.wav"], old["changed.wav"])
    assert counts(library.update()) == {"unchanged": 7}


def test_two_recordings_that_swap_their_names_keep_the_right_embeddings(
    library: Library, sounds: Path, write: Write
) -> None:
    write("a.wav", seed=1)
    write("b.wav", seed=2)
    library.add(sounds)
    before = {Path(os.fsdecode(key[0])).name: value for key, value in rows(library).items()}
    os.rename(sounds / "a.wav", sounds / "c")
    os.rename(sounds / "b.wav", sounds / "a.wav")
    os.rename(sounds / "c", sounds / "b.wav")
    os.utime(sounds / "a.wav", (5, 5))
    os.utime(sounds / "b.wav", (6, 6))
    library.update()
    after = {Path(os.fsdecode(key[0])).name: value for key, value in rows(library).items()}
    np.testing.assert_array_equal(after["a.wav"], before["b.wav"])
    np.testing.assert_array_equal(after["b.wav"], before["a.wav"])


def test_what_cannot_be_read_is_named_remembered_and_tried_again_when_it_changes(
    library: Library, sounds: Path, write: Write
) -> None:
    write("good.wav")
    (sounds / "empty.wav").touch()
    (sounds / "junk.wav").write_bytes(b"no audio" * 100)
    (sounds / "link.wav").symlink_to("nowhere")
    os.mkfifo(sounds / "pipe.wav")
    write("other.txt")
    write(".hidden.wav")
    report = library.add(sounds)
    reasons = {Path(failure.name).name: failure.reason for failure in report.failed}
    assert reasons == {
        "empty.wav": "empty_file", "junk.wav": "unreadable", "link.wav": "missing_file", "pipe.wav": "unreadable"
    }  # fmt: skip
    assert report.ignored == {"not_audio": 1, "hidden": 1}
    again = library.update()
    assert {Path(failure.name).name for failure in again.failed if not failure.unchanged} == {"link.wav"}
    assert counts(again) == {"unchanged": 1, "failed": 4}
    assert not any(failure.unchanged for failure in library.update(retry=True).failed)
    write("empty.wav", seed=1)
    write("nowhere", seed=2)
    assert counts(library.update()) == {"new": 2, "unchanged": 1, "failed": 2}
    assert [Path(path).name for path in paths(library)] == ["empty.wav", "good.wav", "link.wav"]


def test_a_folder_that_is_missing_or_empty_keeps_its_recordings_until_they_are_removed(
    library: Library, sounds: Path, tmp_path: Path, write: Write
) -> None:
    write("a.wav", seed=1)
    write("b.wav", seed=2)
    library.add(sounds)
    sounds.rename(tmp_path / "unmounted")
    for reason in ("folder_missing", "folder_empty"):
        (failure,) = library.update().failed
        assert failure.reason == reason
        assert "its 2 recordings stay in the library" in failure.detail
        assert len(paths(library)) == 2
        sounds.mkdir(exist_ok=True)
    assert library.remove(sounds).recordings == 2
    assert counts(library.update()) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_without_permission_keeps_its_recordings(library: Library, sounds: Path, write: Write) -> None:
    write("a.wav")
    write("locked/b.wav", seed=1)
    library.add(sounds)
    (sounds / "locked").chmod(0)
    try:
        assert [failure.reason for failure in library.update().failed] == ["unreadable_folder"]
        assert len(paths(library)) == 2
    finally:
        (sounds / "locked").chmod(0o755)


def test_each_file_is_indexed_once_whatever_the_names_links_and_overlaps(
    library: Library, sounds: Path, write: Write
) -> None:
    names = ['it\'s "q".wav', "new\nline.WAV", "😀.wav", "-dash#1%20.wav", os.fsdecode(b"\xff\xfe.wav"), "b/c.wav"]
    for seed, name in enumerate(names):
        write(name, seed=seed)
    (sounds / "b" / "loop").symlink_to("..")
    (sounds / "d.wav").symlink_to("b/c.wav")
    assert counts(library.add(sounds, sounds / "b", sounds / "b" / "c.wav")) == {"new": 6}
    assert sorted(paths(library)) == sorted(str(sounds / name) for name in names)
    assert counts(library.update()) == {"unchanged": 6}
    with pytest.raises(LibraryError, match="so the next update would add it again"):
        library.remove(sounds / "b")
    assert library.remove(sounds).recordings == 6


def test_what_is_removed_leaves_no_embedding_in_any_file(library: Library, sounds: Path, write: Write) -> None:
    size = (library.path / "library.sqlite").stat().st_size
    write("private/a.wav", 100.0, seed=1)
    write("kept/b.wav", 40.0, seed=2)
    library.add(sounds / "private", sounds / "kept", workers=0)
    library.close()

    def files_with(embeddings: list[np.ndarray]) -> set[str]:
        contents = {path.name: path.read_bytes() for path in library.path.rglob("*") if path.is_file()}
        return {name for name, content in contents.items() if any(e.tobytes() in content for e in embeddings)}

    before = rows(library)
    private = [vector for key, vector in before.items() if b"private" in key[0]]
    kept = {key: vector for key, vector in before.items() if b"kept" in key[0]}
    assert len(files_with(private)) == 2
    library = Library(library.path)
    assert library.remove(sounds / "private") == Removed(recordings=1, partial=0, failed=0)
    library.close()
    assert files_with(private) == set()
    assert rows(library).keys() == kept.keys()
    assert len(files_with(list(kept.values()))) == 2
    library = Library(library.path)
    library.remove(sounds / "kept")
    library.close()
    assert files_with(list(kept.values())) == set()
    assert not (library.path / "vectors").exists()
    assert (library.path / "library.sqlite").stat().st_size == size


def test_clips_of_a_prepared_dataset_are_indexed_by_their_keys(
    library: Library, sounds: Path, tmp_path: Path, write: Write
) -> None:
    for name in ("a", "b"):
        write(f"{name}.wav", seed=ord(name))
        (sounds / f"{name}.txt").write_text("a sound")
    dataset = tmp_path / "dataset"
    prepare(sounds, dataset, workers=0, progress=False)
    assert counts(library.add(dataset)) == {"new": 2}
    index = ClipIndex.open(dataset)
    assert [recording.name for recording in library.recordings()] == [f"{dataset}#{index.key(n)}" for n in range(2)]
    assert counts(library.update()) == {"unchanged": 2}
    dataset.rename(tmp_path / "elsewhere")
    assert [failure.reason for failure in library.update().failed] == ["folder_missing"]
    assert len(library) == 2


def test_a_recording_that_changes_while_it_is_read_is_left_for_the_next_update(
    library: Library, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("growing.wav", seed=1)
    encode = library.model.encode_audio

    def growing(*arguments: Any, **options: Any) -> Any:
        write("growing.wav", 2.0, seed=2)
        return encode(*arguments, **options)

    monkeypatch.setattr(library.model, "encode_audio", growing)
    (failure,) = library.add(path).failed
    assert failure.reason == "changed_while_read"
    assert len(library) == 0
    monkeypatch.undo()
    assert counts(library.update()) == {"new": 1}
    assert library.recordings()[0].seconds == 2.0


def test_paths_that_cannot_be_indexed_are_errors_and_change_nothing(
    library: Library, sounds: Path, tmp_path: Path, model_folder: Path, write: Write
) -> None:
    write("a.wav")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "empty", "no audio in this folder"),
        (library.path, "in the library .* itself"),
    ):
        with pytest.raises(LibraryError, match=message):
            library.add(sounds, path)
    with pytest.raises(LibraryError, match="not in this library"):
        library.remove(sounds)
    assert counts(library.update()) == {}
    for path, message in ((sounds, "is not a library"), (sounds / "a.wav", "this is a file"), (model_folder, "empty")):
        with pytest.raises(LibraryError, match=message):
            Library(path, model=model_folder)


def test_a_model_that_was_replaced_in_its_folder_is_refused(
    tmp_path: Path, model_folder: Path, sounds: Path, write: Write
) -> None:
    write("a.wav")
    model = shutil.copytree(model_folder, tmp_path / "model")
    library = Library(tmp_path / "library", model=model)
    tiny_slap(layers=2).save_pretrained(model)
    for workers in (0, 1):
        with pytest.raises(LibraryError, match="cannot be compared; make another library: slap-fast index"):
            Library(library.path).add(sounds, workers=workers)
    with pytest.raises(LibraryError, match="cannot be compared"):
        Library(library.path, model=model)
    with pytest.raises(LibraryError, match="cannot be compared"):
        _ = library.model


def test_the_example_of_the_page_runs(
    tmp_path: Path, model_folder: Path, empty_library: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    page = Path(__file__).parents[3] / "docs" / "indexing.md"
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "demo/run/model")
    write("../recordings/a.wav")
    Library("sounds", model="demo/run/model").close()
    shutil.copytree(empty_library / "text", "sounds/text")
    exec(example, {})
    assert len(Library("sounds")) == 0
