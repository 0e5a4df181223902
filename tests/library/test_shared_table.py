from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slap_fast.library import shared_table
from slap_fast.library.database import Database, WindowRow
from slap_fast.library.errors import LibraryError
from slap_fast.library.moments import Moment
from slap_fast.library.search import find_moments
from slap_fast.library.shared_library import SharedLibrary, search_condition
from slap_fast.library.shared_table import Exported, SharedTable, export_library
from slap_fast.library.vector_index import VectorIndex
from tests.library.s3_server import s3_server

pytest.importorskip("lancedb")

WIDTH = 16
MODEL = {"name": "/models/mine", "weights": "0123abcd"}


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "shared")
        return
    with s3_server() as (address, objects):
        settings = {"ENDPOINT": address, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
        for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield "s3://bucket/archive/sounds"
        assert any(name.startswith("bucket/archive/sounds/windows.lance/") for name in objects)


class Filled:
    """A library with random windows."""

    def __init__(self, folder: Path, *, weights: str = "0123abcd", seed: int = 0) -> None:
        self.database = Database.create(folder, {"width": WIDTH, "model": {**MODEL, "weights": weights}})
        self.draw = np.random.default_rng(seed)
        self.windows: dict[str, np.ndarray] = {}

    def add(self, path: str, windows: int, *, member: str = "") -> int:
        matrix = self.draw.standard_normal((windows, WIDTH)).astype(np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        number = self.database.begin_recording(path, member, size=9, mtime_ns=7, digest=bytes(range(16)))
        rows = [WindowRow(5.0 * row, 5.0 * row + 10.0, False, vector) for row, vector in enumerate(matrix)]
        self.database.complete_recording(number, rows, seconds=5.0 * windows + 5.0, embedding=matrix[0])
        self.windows[path] = matrix
        return number


def _all(table: SharedTable) -> list[tuple[str, str, float]]:
    found = table.search(np.ones(WIDTH, np.float32), 10_000)
    return sorted((row.library, row.recording.path, row.start) for row in found)


def test_exports_bring_new_moved_and_removed_windows_and_no_others(url: str, tmp_path: Path) -> None:
    library = Filled(tmp_path / "library")
    strange = library.add('/sounds/it\'s "a"\n😀 %20#\udcff.wav', 5)
    gone = library.add("/sounds/gone.wav", 3)
    library.add("/data/train", 1, member="clip-7")
    assert export_library(library.database, url) == Exported(added=9, updated=0, removed=0, kept=0)
    assert export_library(library.database, url) == Exported(added=0, updated=0, removed=0, kept=9)

    opened = SharedTable(url)
    query = library.windows['/sounds/it\'s "a"\n😀 %20#\udcff.wav'][2]
    best = opened.search(query, 1)[0]
    assert (best.recording.path, best.start, best.end) == ('/sounds/it\'s "a"\n😀 %20#\udcff.wav', 10.0, 20.0)
    assert best.score == pytest.approx(1.0, abs=1e-6)
    assert best.recording == library.database.recordings_of([strange])[strange]
    assert opened.search(library.windows["/data/train"][0], 1)[0].recording.member == "clip-7"
    assert (opened.identity.name, opened.identity.weights) == (MODEL["name"], MODEL["weights"])

    library.database.remove_recordings([gone])
    library.database.move_recording(strange, "/moved.wav", "", size=9, mtime_ns=7)
    library.add("/sounds/new.wav", 2)
    assert export_library(library.database, url) == Exported(added=2, updated=5, removed=3, kept=1)
    paths = [path for _, path, _ in _all(SharedTable(url))]
    assert paths == ["/data/train"] + ["/moved.wav"] * 5 + ["/sounds/new.wav"] * 2


def test_a_library_that_gives_ids_out_again_leaves_no_old_rows(tmp_path: Path) -> None:
    # As a backup does that is copied back: other windows have the ids that the table has.
    library, url = Filled(tmp_path / "library"), str(tmp_path / "shared")
    library.add("/kept.wav", 2)
    library.database.close()
    backup = (tmp_path / "library" / "library.sqlite").read_bytes()
    library.database = Database(tmp_path / "library", write=True)
    library.add("/lost.wav", 1)
    library.add("/same.wav", 3)
    export_library(library.database, url)
    library.database.close()
    (tmp_path / "library" / "library.sqlite").write_bytes(backup)
    library.database = Database(tmp_path / "library", write=True)
    library.add("/same.wav", 4)
    assert export_library(library.database, url) == Exported(added=0, updated=4, removed=0, kept=2)
    for row, vector in enumerate(library.windows["/same.wav"]):
        best = SharedTable(url).search(vector, 1)[0]
        assert (best.recording.path, best.start) == ("/same.wav", 5.0 * row)
        assert best.score == pytest.approx(1.0, abs=1e-6)


def test_libraries_of_several_machines_share_a_table(tmp_path: Path) -> None:
    first, second = Filled(tmp_path / "first"), Filled(tmp_path / "second", seed=1)
    url = str(tmp_path / "shared")
    first.add("/a.wav", 4)
    second.add("/a.wav", 2)
    export_library(first.database, url)
    assert export_library(second.database, url).added == 2
    assert export_library(first.database, url) == Exported(added=0, updated=0, removed=0, kept=4)
    assert len({library for library, _, _ in _all(SharedTable(url))}) == 2
    assert SharedTable(url).search(second.windows["/a.wav"][1], 1)[0].library == second.database.meta["id"]


def test_an_export_that_died_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, url = Filled(tmp_path / "library"), str(tmp_path / "shared")
    library.add("/a.wav", 10)
    monkeypatch.setattr(shared_table, "ROWS_AT_ONCE", 3)
    matrix_of, taken = library.database.matrix_of, []

    def dying(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        taken.append(ids)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return matrix_of(ids)

    monkeypatch.setattr(library.database, "matrix_of", dying)
    with pytest.raises(KeyboardInterrupt):
        export_library(library.database, url)
    monkeypatch.undo()
    assert export_library(library.database, url) == Exported(added=4, updated=0, removed=0, kept=6)
    assert len(_all(SharedTable(url))) == 10


def test_an_indexed_table_finds_what_the_exact_search_finds_and_later_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, url = Filled(tmp_path / "library"), str(tmp_path / "shared")
    for number in range(40):
        library.add(f"/{number}.wav", 50)
    monkeypatch.setattr(shared_table, "INDEXED_FROM", 2_000)
    export_library(library.database, url)
    library.add("/later.wav", 3)
    export_library(library.database, url)
    opened = SharedTable(url)
    matrix = np.concatenate(list(library.windows.values()))
    query = library.windows["/later.wav"][1]
    # One bit a number says little about 16 numbers: all are compared.
    found = opened.search(query, 10, refined=201)
    assert found[0].recording.path == "/later.wav"
    np.testing.assert_allclose([row.score for row in found], np.sort(matrix @ query)[::-1][:10], atol=1e-5)
    only = opened.search(query, 500, where="seconds < 100")
    assert [row.recording.path for row in only] == ["/later.wav"] * 3


def test_a_search_finds_the_moments_of_the_library_itself(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    library = Filled(tmp_path / "library")
    for number in range(12):
        library.add(f"/a{number % 2}/{number}\udcff.wav", 3 * number + 1)
    library.add("/data#1", 1, member="it's #7 \\ 'é")
    library.add("/data#1", 1, member="other")
    export_library(library.database, url)
    shared = SharedLibrary(url)
    index = VectorIndex(library.database)
    below = library.database.window_ids(below=["/a1"])
    for _ in range(3):
        query = library.draw.standard_normal(WIDTH).astype(np.float32)
        _assert_same(shared.find(query, top=20), find_moments(library.database, index, query, top=20))
        condition = search_condition([b"/a1"])
        inside = find_moments(library.database, index, query, top=9, among=below, min_score=0.2)
        _assert_same(shared.find(query, top=9, where=condition, min_score=0.2), inside)
        for name in ("/data#1#it's #7 \\ 'é", "/data#1", "/data#1/", "/a1/11\udcff.wav"):
            some = library.database.window_ids(below=[name])
            found = shared.find(query, top=9, where=search_condition([os.fsencode(name)]))
            assert len(found) == (2 if name.rstrip("/") == "/data#1" else len(found))
            _assert_same(found, find_moments(library.database, index, query, top=9, among=some))
    for name in ("/a", "/data#1#it's", "/data#1#", "a0"):
        with pytest.raises(LibraryError, match=r"the table .* has no recording there"):
            shared.search("a dog", folders=["/a1", name])


def _assert_same(found: list[Moment], expected: list[Moment]) -> None:
    assert [replace(moment, score=0) for moment in found] == [replace(moment, score=0) for moment in expected]
    np.testing.assert_allclose([moment.score for moment in found], [moment.score for moment in expected], atol=1e-5)


def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Filled(tmp_path / "library")
    library.add("/a.wav", 1)
    with pytest.raises(LibraryError, match="no table `windows` here; export a library first"):
        SharedTable(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    export_library(library.database, str(tmp_path / "shared"))
    other = Filled(tmp_path / "other", weights="ffff")
    with pytest.raises(LibraryError, match=r"the model /models/mine \(0123abcd\), not of .* \(ffff\).*another URL"):
        export_library(other.database, str(tmp_path / "shared"))
    # Both find no table, and the other one is a moment later: it makes none of its own.
    with monkeypatch.context() as patch:
        tables = iter([None])
        patch.setattr(shared_table, "_open", lambda database: next(tables, database.open_table("windows")))
        with pytest.raises(LibraryError, match=r"not of .* \(ffff\).*another URL"):
            export_library(other.database, str(tmp_path / "shared"))
    opened = SharedTable(str(tmp_path / "shared"))
    with pytest.raises(LibraryError, match=r"LanceDB: .*no_such_column"):
        opened.search(np.ones(WIDTH, np.float32), 1, where="no_such_column = 3")
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        opened.search(np.ones(3, np.float32), 1)
    with pytest.raises(LibraryError, match=r"s3://bucket/x: LanceDB: [^/]*; check"):
        SharedTable("s3://bucket/x")
