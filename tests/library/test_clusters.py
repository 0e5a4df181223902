"""Clusters: found, numbered, named and drawn, in libraries of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slap_fast.library import clusters
from slap_fast.library.cluster_map import plot_map
from slap_fast.library.clusters import DEFAULT_VOCABULARY, Clustering, name_clusters, read_vocabulary
from slap_fast.library.database import Recording
from slap_fast.library.errors import LibraryError

TEXTS = ["rain", "dogs", "bells", "music"]
AXES = np.eye(40, dtype=np.float32)[:4]  # of the texts


def _encode(texts: Sequence[str]) -> np.ndarray:
    return AXES[[TEXTS.index(text) for text in texts]]


def _clustering(near: Sequence[int] | np.ndarray, *, noise: float = 0.05, min_size: int = 5) -> Clustering:
    """Recordings near the text of this number each; -1 is far from all of them."""
    random = np.random.default_rng(0)
    centers = np.concatenate([AXES, np.zeros((1, 40), np.float32)])[list(near)]
    far = np.array(near).reshape(-1, 1) < 0
    vectors = centers + np.where(far, 1.0, noise) * random.normal(size=(len(near), 40))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    recordings = [
        Recording(number, f"/{number}.wav", "", 1, 0, bytes([number % 256]), 5.0, "complete")
        for number in range(len(near))
    ]
    return name_clusters(recordings, vectors.astype(np.float32), TEXTS, _encode, min_size=min_size)


def test_clusters_are_named_numbered_by_size_and_the_rest_is_unclustered() -> None:
    near = [1] * 10 + [0] * 20 + [3] * 15 + [-1] * 3
    found = _clustering(near)
    assert [(cluster.number, cluster.name, len(cluster.members)) for cluster in found.clusters] == [
        (0, "rain", 20),
        (1, "music", 15),
        (2, "dogs", 10),
    ]
    assert found.labels.tolist() == [2] * 10 + [0] * 20 + [1] * 15 + [-1] * 3
    assert [found.name_of(row) for row in (0, 45)] == ["dogs", "unclustered"]
    assert ((found.probabilities > 0) == (found.labels >= 0)).all()
    for cluster in found.clusters:
        center = found.embeddings[list(cluster.members)].mean(axis=0)
        similarity = found.embeddings[list(cluster.members)] @ center
        assert (np.diff(similarity) <= 1e-6).all()
    again = _clustering(near)
    assert again.clusters == found.clusters
    np.testing.assert_array_equal(again.positions(), found.positions())


def test_copies_of_a_recording_do_not_change_the_clusters() -> None:
    near = np.repeat([0, 1, 2, 3], 20)
    once = _clustering(near)
    vectors = np.concatenate([once.embeddings, np.repeat(once.embeddings[[0, 25]], 8, axis=0)])
    recordings = [replace(once.recordings[0], id=number, path=f"/{number}.wav") for number in range(len(vectors))]
    found = name_clusters(recordings, vectors, TEXTS, _encode, min_size=5)
    names = [found.name_of(row) for row in range(len(vectors))]
    assert names[:80] == [once.name_of(row) for row in range(80)] == [TEXTS[number] for number in near]
    assert names[80:] == ["rain"] * 8 + ["dogs"] * 8
    places = found.positions()
    assert (places[80:] == np.repeat(places[[0, 25]], 8, axis=0)).all()
    assert len(np.unique(places, axis=0)) == 80


def test_clusters_near_the_same_text_get_different_names() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.1, 0.7], [0.7, 0.6, 0.2], [0.0, 0.1, 0.9]])
    names = [name for name, _ in clusters.choose_names(scores, ["rain", "dogs", "bells"])]
    assert names == ["rain, dogs", "rain, bells", "rain, dogs (2)", "bells"]
    assert [name for name, _ in clusters.choose_names(np.ones((3, 1)), ["rain"])] == ["rain", "rain (2)", "rain (3)"]


def test_a_text_that_is_not_similar_names_no_cluster() -> None:
    scores = np.array([[-0.1, -0.2], [-0.3, -0.2], [0.1, -0.1], [0.2, -0.1]])
    expected = [("unnamed", -0.1), ("unnamed (2)", -0.2), ("rain", 0.1), ("rain (2)", 0.2)]
    assert clusters.choose_names(scores, ["rain", "dogs"]) == expected


def test_a_large_library_is_clustered_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    near = [0, 1, 2] * 100
    every = _clustering(near)
    monkeypatch.setattr(clusters, "MAX_CLUSTERED", 90)
    monkeypatch.setattr(clusters, "MAX_MAPPED", 50)
    sampled = _clustering(near)
    assert (every.fitted, sampled.fitted) == (300, 90)
    assert {tuple(sorted(cluster.members)) for cluster in sampled.clusters} == {
        tuple(sorted(cluster.members)) for cluster in every.clusters
    }
    assert np.isfinite(sampled.positions()).all(axis=1).sum() == 50


@pytest.mark.parametrize("near", [[], [0], [0, 0, 1], [0] * 30, [0, 1] * 6])
def test_libraries_of_any_size_are_clustered_and_drawn(near: list[int], tmp_path: Path) -> None:
    for noise in (0.05, 0.0):  # without noise: many equal embeddings
        found = _clustering(near, noise=noise, min_size=2)
        positions = found.positions()
        assert positions.shape == (len(near), 2)
        assert np.isfinite(positions).all()
        plot_map(found, positions, tmp_path / "map.png")
        assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_vocabulary_is_a_text_file_with_one_name_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffrain\r\n\r\n  a dog \nregen 🌧\nrain\n".encode())
    assert read_vocabulary(path) == ["rain", "a dog", "regen 🌧"]
    for content, message in ((b" \n\n", "no text in it"), (b"caf\xe9\n", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(LibraryError, match=message):
            read_vocabulary(path)
    assert len(read_vocabulary(DEFAULT_VOCABULARY)) == len(DEFAULT_VOCABULARY.read_text().splitlines()) == 354
