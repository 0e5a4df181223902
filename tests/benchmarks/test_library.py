"""Benchmarks of the sound library: every peer finds the same, on sizes that take seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import library_search, vector_stores
from benchmarks.harness.cli import main
from benchmarks.library_vectors import Vectors, exact_neighbors, read_blocks, recall, saved_windows
from benchmarks.vector_store_peers import NAMES, insert_all, open_store, settings_of


def test_indexing_stores_the_embeddings_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is searched, and the export of the text tower takes longer than the rest. `derived` imports it from there.
    for module in ("slap_fast.library.indexing.derived", "slap_fast.library.text_tower"):
        monkeypatch.setattr(f"{module}.export_text_tower", lambda model, library: False)
    options = ["--quick", "--no-memory", "--rounds", "1", "--cases", "at 48 kHz", "--out", str(tmp_path)]
    assert main(["library", *options]) == 0
    (case,) = json.loads((tmp_path / "library-cpu-quick.json").read_text())["cases"]
    assert [peer["status"] for peer in case["peers"]] == ["ok"] * 2, case


def test_a_smaller_library_is_the_beginning_of_a_larger_one_and_queries_are_not_in_it(tmp_path: Path) -> None:
    vectors = Vectors(16)
    small, large = (saved_windows(vectors, count, tmp_path) for count in (300, 20_100))
    np.testing.assert_array_equal(large[:300], small)
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(large))), large)
    for queries in (vectors.sound_queries(20), vectors.text_queries(20)):
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
        found = exact_neighbors(large, queries, 5)
        np.testing.assert_array_equal(found, np.argsort(-(queries @ large.T), axis=1, kind="stable")[:, :5])
        assert (queries @ large.T).max() < 0.9999
    assert recall(np.array([[1, 2], [3, 9]]), np.array([[2, 1], [3, 4]])) == 0.75


def test_every_way_to_search_finds_the_exact_neighbors(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("sentence_transformers")
    sizes = ["--windows", "2000", "--hnsw-windows", "1000", "--width", "24", "--queries", "5"]
    assert library_search.main([str(tmp_path / "work"), *sizes, "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "library_search-cpu-quick.json").read_text())["table"]
    found = {row[0]: row[-2:] for row in table["rows"]}
    assert len(found) == 9
    assert min(min(scores) for scores in found.values()) >= 0.98, found


@pytest.mark.parametrize("name", NAMES)
def test_every_store_finds_inserts_replacements_and_removals(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    vectors = Vectors(24)
    windows = next(vectors.windows(2_000))
    store = open_store(name, tmp_path / "store", 24)
    assert insert_all(store, iter([windows[:1_000], windows[1_000:]])) == 2_000
    store.build_index()
    queries = vectors.sound_queries(5)
    found = np.array([store.search(query, 10, settings_of(name)[-1]).keys for query in queries])
    assert recall(found, exact_neighbors(windows, queries, 10)) >= 0.98
    new = vectors.new_windows(40)
    store.replace([3], new[:20])
    store.insert(2_000, new[20:])
    store.remove([0])
    for query, key in ((new[1], 61), (new[21], 2_001)):
        best = store.search(query, 3, settings_of(name)[-1])
        assert best.keys[0] == key
        assert best.scores[0] == pytest.approx(1, abs=1e-5)
    store.update_index()
    assert sorted(store.keys().tolist()) == list(range(20, 2_020))


def test_a_killed_insert_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    sizes = ["--windows", "2000", "--width", "24", "--queries", "5", "--kills", "1", "--starts", "1"]
    arguments = [str(tmp_path / "work"), *sizes, "--store", "FAISS + SQLite (ours)", "--out", str(tmp_path)]
    assert vector_stores.main(arguments) == 0
    table = json.loads((tmp_path / "vector_stores-cpu-quick.json").read_text())["table"]
    figures = {row[0]: row[1] for row in table["rows"]}
    names = (
        "1 kills: acknowledged windows lost",
        "recordings torn",
        "windows twice",
        "missing or twice after going on",
    )
    assert [figures[name] for name in names] == [0] * 4
    assert min(figures["recall@10, sound queries"], figures["recall@10, text queries"]) >= 0.98
