"""The vector index of a library against a scan in NumPy, after changes, without it, and damaged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slap_fast.library.database import Database, WindowRow
from slap_fast.library.vector_index import VectorIndex, binary_codes, build, stored_vectors

WIDTH = 16


def unit(generator: np.random.Generator, count: int) -> np.ndarray:
    vectors = generator.standard_normal((count, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def add(database: Database, name: str, vectors: np.ndarray) -> int:
    rows = [WindowRow(5.0 * n, 5.0 * n + 10.0, False, vector) for n, vector in enumerate(vectors)]
    recording = database.begin_recording(f"/sounds/{name}", "", size=1, mtime_ns=1, digest=name.encode())
    database.complete_recording(recording, rows, seconds=5.0 * len(rows) + 5.0, embedding=vectors[0])
    return recording


def expected(database: Database, query: np.ndarray, count: int, among: np.ndarray | None = None) -> list[int]:
    ids, vectors = (np.concatenate(part) for part in zip(*database.vectors(), strict=True))
    kept = np.ones(len(ids), bool) if among is None else np.isin(ids, among)
    scores = np.multiply(vectors[kept], query, dtype=np.float64).sum(axis=1).astype(np.float32)
    return ids[kept][np.lexsort((ids[kept], -scores))][:count].tolist()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.create(tmp_path / "library", {"width": WIDTH, "model": {"name": "m", "weights": "w"}}) as database:
        yield database


@pytest.fixture
def small_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary codes for libraries of this size, in two parts or more."""
    monkeypatch.setattr(binary_codes, "MIN_WINDOWS", 2000)
    monkeypatch.setattr(binary_codes, "_PART", 1500)
    monkeypatch.setattr(binary_codes, "_MOST_SHARE", 0.5)


@settings(max_examples=15)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 40)),
            st.tuples(st.just("remove"), st.integers(0, 5)),
            st.tuples(st.just("build"), st.just(0)),
            st.tuples(st.just("search"), st.integers(1, 60)),
        ),
        min_size=3,
        max_size=14,
    ),
    seed=st.integers(0, 9),
)
def test_results_equal_a_scan_whatever_was_added_removed_and_built_before(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    few, stored_vectors._FEW_WINDOWS = stored_vectors._FEW_WINDOWS, 10
    folder = tmp_path_factory.mktemp("scan") / "library"
    try:
        with Database.create(folder, {"width": WIDTH, "model": {"name": "m", "weights": "w"}}) as database:
            index = VectorIndex(database)
            recordings = [add(database, "first", unit(generator, 3))]
            for number, (step, value) in enumerate([*steps, ("build", 0), ("search", 10)]):
                if step == "add":
                    vectors = unit(generator, value)
                    vectors[value // 2 :] = vectors[0]  # ties
                    recordings.append(add(database, str(number), vectors))
                elif step == "remove" and len(recordings) > 1:
                    database.remove_recordings([recordings.pop(value % len(recordings))])
                elif step == "build":
                    build(database)
                elif step == "search":
                    query = unit(generator, 1)[0]
                    among = database.window_ids()[:: 1 + value % 3]
                    for some in (None, among, among[:0]):
                        found = index.search(query, value, among=some)
                        assert found.ids.tolist() == expected(database, query, value, some)
    finally:
        stored_vectors._FEW_WINDOWS = few


def test_binary_codes_find_what_a_scan_finds_also_new_windows_and_no_removed_ones(
    database: Database, small_codes: None
) -> None:
    generator = np.random.default_rng(0)
    centers = unit(generator, 40)
    removed = []
    with database.transaction():
        for number in range(60):
            near = centers[number % 40] + 0.15 * unit(generator, 50)
            removed.append(add(database, str(number), near / np.linalg.norm(near, axis=1, keepdims=True)))
    texts = unit(generator, 200)
    build(database, queries=lambda: texts)
    index = VectorIndex(database)
    entry = stored_vectors.StoredVectors.open(database).manifest["codes"]  # type: ignore[union-attr]
    assert len(entry["files"]) == 2
    assert 64 <= entry["candidates"] <= 1500
    database.remove_recordings(removed[:3])
    new = add(database, "new", centers[:5])
    queries = [*texts[:50], *centers]
    hits = [len(set(index.search(q, 10).ids.tolist()) & set(expected(database, q, 10))) for q in queries]
    assert np.mean(hits) / 10 >= 0.98
    assert database.places([int(index.search(centers[2], 1).ids[0])]).popitem()[1].recording == new
    everything = index.search(centers[0], 10_000)
    assert everything.ids.tolist() == expected(database, centers[0], 10_000)


def test_where_codes_need_too_many_candidates_all_windows_are_scanned(
    database: Database, small_codes: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_codes, "_MOST_SHARE", 0.01)
    generator = np.random.default_rng(0)
    add(database, "noise", unit(generator, 2500))
    with caplog.at_level(logging.WARNING):
        build(database)
    assert "each search scans all windows" in caplog.text
    query = unit(generator, 1)[0]
    assert VectorIndex(database).search(query, 50).ids.tolist() == expected(database, query, 50)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _noise(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:] = np.random.default_rng(0).bytes(len(content) - 200)
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: list[Callable[[Path], None]] = [_cut, _noise, _empty, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["vectors-*", "ids-*", "codes-*", "current.json"])
def test_a_damaged_index_is_reported_not_used_and_built_again(
    database: Database, small_codes: None, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    generator = np.random.default_rng(0)
    centers = np.repeat(unit(generator, 50), 50, axis=0) + 0.1 * unit(generator, 2500)
    add(database, "a", (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32))
    build(database)
    query = centers[7]
    folder = database.path.parent / stored_vectors.FOLDER
    path = min(folder.glob(name))
    damage(path)
    index = VectorIndex(database)
    with caplog.at_level(logging.WARNING), np.errstate(all="ignore"):
        assert index.search(query, 20).ids.tolist() == expected(database, query, 20)
    assert bool(caplog.records) == (name != "current.json" or damage is not Path.unlink)
    build(database)
    caplog.clear()
    assert VectorIndex(database).search(query, 20).ids.tolist() == expected(database, query, 20)
    assert not caplog.records
    assert len(list(folder.iterdir())) == 5  # the codes are in two parts


def test_searches_go_on_while_another_process_writes_the_index_anew(database: Database) -> None:
    generator = np.random.default_rng(0)
    recordings = [add(database, str(number), unit(generator, 1200)) for number in range(3)]
    build(database)
    reader = Database(database.path.parent)
    index, query, stop, wrong = VectorIndex(reader), unit(generator, 1)[0], threading.Event(), list[object]()

    def search() -> None:
        while not stop.is_set():
            try:
                if len(index.search(query, 5).ids) != 5:
                    wrong.append("too few")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(3, 9):
        database.remove_recordings([recordings.pop(0)])
        recordings.append(add(database, str(number), unit(generator, 1200)))
        build(database)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert index.search(query, 9).ids.tolist() == expected(database, query, 9)
    reader.close()


def test_embedding_that_is_damaged_to_a_low_score_is_noticed(database: Database) -> None:
    vectors = unit(np.random.default_rng(0), 1500)
    add(database, "a", vectors)
    build(database)
    path = next((database.path.parent / "vectors").glob("vectors-*.npy"))
    matrix = np.load(path, mmap_mode="r+")
    matrix[700] = 0
    matrix.flush()
    assert VectorIndex(database).search(vectors[700], 3).ids.tolist() == expected(database, vectors[700], 3)


def test_damage_is_noticed_where_only_some_rows_are_read(
    database: Database, small_codes: None, caplog: pytest.LogCaptureFixture
) -> None:
    # The rows of candidates that binary codes name, and of the windows of a folder: the rest is not read.
    generator = np.random.default_rng(0)
    centers = np.repeat(unit(generator, 50), 50, axis=0) + 0.1 * unit(generator, 2500)
    vectors = (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)
    add(database, "a", vectors)
    build(database)
    sound = [VectorIndex(database).search(vectors[row], 5).ids.tolist() for row in range(0, 2500, 50)]
    assert sound == [expected(database, vectors[row], 5) for row in range(0, 2500, 50)]
    assert not caplog.records
    path = next((database.path.parent / "vectors").glob("vectors-*.npy"))
    matrix = np.load(path, mmap_mode="r+")
    matrix[700:702] = 0
    matrix[1200, 3] *= -1e3
    matrix.flush()
    some = np.arange(500, 2000)
    for query, among in ((vectors[700], None), (vectors[700], some), (-vectors[1200], some)):
        caplog.clear()
        found = VectorIndex(database).search(query, 3, among=among)
        assert found.ids.tolist() == expected(database, query, 3, among)
        assert "it differs from the library; it is not used" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_any_number_of_equal_windows_come_in_the_order_of_their_ids(
    database: Database, small_codes: None, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    # Silence, for example; 3000 windows are more than any depth that a search begins with.
    monkeypatch.setattr(binary_codes, "_MOST_SHARE", share)
    generator = np.random.default_rng(0)
    query = unit(generator, 1)[0]
    silence = unit(generator, 1) + query
    silence /= np.linalg.norm(silence)
    vectors = unit(generator, 7000)
    vectors[::2][:3000] = silence
    add(database, "a", vectors)
    build(database)
    index = VectorIndex(database)
    assert (index.search(query, 10).ids == expected(database, query, 10)).all()
    assert (index._codes is not None) == (share > 0)
    below = database.window_ids()[100:]
    for count in (1, 10, 20, 100, 1000, 4000, 6999):
        assert index.search(query, count).ids.tolist() == expected(database, query, count)
        assert index.search(query, count, among=below).ids.tolist() == expected(database, query, count, below)


def test_older_database_that_was_copied_back_does_not_use_the_newer_index(tmp_path: Path, database: Database) -> None:
    generator = np.random.default_rng(0)
    backup = database.path.read_bytes()
    add(database, "a", unit(generator, 1500))
    build(database)
    folder = database.path.parent
    database.close()
    database.path.write_bytes(backup)
    with Database(folder, write=True) as restored:
        vectors = unit(generator, 1600)
        add(restored, "b", vectors)
        for _ in range(2):
            assert VectorIndex(restored).search(vectors[700], 3).ids.tolist() == expected(restored, vectors[700], 3)
            build(restored)


def test_new_windows_of_a_database_that_was_copied_back_are_searched(database: Database) -> None:
    # They get ids that the newer index has, and the embeddings that it is compared with are not there any more.
    generator = np.random.default_rng(0)
    add(database, "a", unit(generator, 1200))
    folder = database.path.parent
    database.close()
    backup = database.path.read_bytes()
    with Database(folder, write=True) as newer:
        add(newer, "b", unit(generator, 1200))
        build(newer)
    database.path.write_bytes(backup)
    with Database(folder, write=True) as restored:
        vectors = unit(generator, 5)
        new = add(restored, "c", vectors)
        for _ in range(2):
            found = VectorIndex(restored).search(vectors[2], 1)
            assert found.ids.tolist() == expected(restored, vectors[2], 1)
            assert restored.places(found.ids.tolist()).popitem()[1].recording == new
            build(restored)
