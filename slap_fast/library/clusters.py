"""Clusters of a library: recordings that sound alike, named by the nearest text of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slap_fast.errors import MissingExtraError, one_line
from slap_fast.library.database import Recording
from slap_fast.library.errors import LibraryError

if TYPE_CHECKING:
    from slap_fast.library.library import Library

MIN_SIZE = 5
"""Default of the least number of recordings in a cluster."""
MAX_CLUSTERED = 20_000
"""HDBSCAN takes time with the square of the number of recordings; of more than this, it gets a sample."""
MAX_MAPPED = 3_000
"""Recordings on the map; of more than this, a sample."""
UNCLUSTERED = "unclustered"
UNNAMED = "unnamed"
DEFAULT_VOCABULARY = Path(__file__).with_name("vocabulary.txt")
_DIMENSIONS = 32  # as good as all dimensions in a comparison with the known sounds of the demo's clips, and faster
_SEED = 0


@dataclass(frozen=True)
class Cluster:
    """Recordings that sound alike.

    Attributes:
        number: 0 for the largest cluster, and so on.
        name: the text of the vocabulary that is nearest to the mean of its recordings. Clusters with the same nearest
            text have their next nearest one added, and a number if that is the same, too. `unnamed`, perhaps with a
            number, if no text has a positive similarity, because the nearest one says nothing then.
        score: cosine similarity of the nearest text and the mean.
        members: rows of its recordings, by descending similarity with the mean: the first is the most typical.
    """

    number: int
    name: str
    score: float
    members: tuple[int, ...]


@dataclass(frozen=True)
class Clustering:
    """All recordings of a library and their clusters.

    Attributes:
        recordings: `N` recordings, in the order of their paths.
        embeddings: `[N, D]` float32, of the recordings.
        labels: `[N]` int64, the number of the cluster; -1 for none.
        probabilities: `[N]` float32, from 0 to 1: how firmly a recording belongs to its cluster (HDBSCAN's).
        clusters: the largest first.
        fitted: number of recordings that HDBSCAN got; each other one joined the cluster of its nearest one among them.
    """

    recordings: Sequence[Recording]
    embeddings: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    clusters: Sequence[Cluster]
    fitted: int

    def name_of(self, row: int) -> str:
        """Name of the cluster of a recording; `unclustered` for none."""
        label = int(self.labels[row])
        return self.clusters[label].name if label >= 0 else UNCLUSTERED

    def positions(self) -> np.ndarray:
        """Positions of the recordings on a 2-D map (t-SNE), `[N, 2]` float32.

        Recordings with the same embedding have the same position. NaN for those outside of a sample, if there are more
        than `MAX_MAPPED`.
        """
        rows = _sample(len(self.recordings), MAX_MAPPED)
        positions = np.full((len(self.recordings), 2), np.nan, np.float32)
        different, place = _without_copies(self.embeddings[rows])
        positions[rows] = _map(self.embeddings[rows[different]])[place]
        return positions


def find_clusters(library: Library, *, min_size: int = MIN_SIZE, vocabulary: Sequence[str] | None = None) -> Clustering:
    """Group the recordings of a library by sound (HDBSCAN), and name the groups.

    The result depends on the recordings alone: random numbers have a fixed seed.

    Args:
        library: the library; nothing in it is changed.
        min_size: least number of recordings in a cluster, at least 2.
        vocabulary: texts to choose names from; None: `DEFAULT_VOCABULARY`.

    Raises:
        LibraryError: `min_size` or `vocabulary` is not valid.
        MissingExtraError: scikit-learn is not installed.
    """
    texts = read_vocabulary(DEFAULT_VOCABULARY) if vocabulary is None else list(dict.fromkeys(vocabulary))
    if not texts:
        raise LibraryError("the vocabulary is empty; give at least one text")
    recordings, embeddings = library.embeddings()
    return name_clusters(recordings, embeddings, texts, library.encode_text, min_size=min_size)


def name_clusters(
    recordings: Sequence[Recording],
    embeddings: np.ndarray,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    min_size: int = MIN_SIZE,
) -> Clustering:
    """`find_clusters` of recordings and their embeddings `[N, D]` float32, of unit length.

    Args:
        texts: the vocabulary.
        encode: texts to embeddings `[n, D]` of unit length; called if there are clusters.
    """
    if min_size < 2:
        raise LibraryError(f"min_size is {min_size}; it must be at least 2")
    labels, probabilities, fitted = _cluster(embeddings, min_size)
    members = [np.flatnonzero(labels == label) for label in range(labels.max(initial=-1) + 1)]
    if not members:
        return Clustering(recordings, embeddings, labels, probabilities, [], fitted)
    centers = np.array([_unit(embeddings[rows].mean(axis=0)) for rows in members])
    names = choose_names(centers @ encode(texts).T, texts)
    clusters = [
        Cluster(number, name, score, tuple(rows[np.argsort(-(embeddings[rows] @ center), kind="stable")].tolist()))
        for number, (rows, center, (name, score)) in enumerate(zip(members, centers, names, strict=True))
    ]
    return Clustering(recordings, embeddings, labels, probabilities, clusters, fitted)


def read_vocabulary(path: Path) -> list[str]:
    """The texts of a UTF-8 file with one on each line; empty lines and repeated texts are left out.

    Raises:
        LibraryError: it is not UTF-8 or has no text.
        OSError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LibraryError(
            f"{path}: not UTF-8 ({one_line(error)}); save it as UTF-8 text, one caption a line"
        ) from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise LibraryError(f"{path}: no text in it; write one caption on each line")
    return texts


def _cluster(embeddings: np.ndarray, min_size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels `[N]`, 0 for the largest cluster, probabilities `[N]`, and the number of recordings in the sample."""
    count = len(embeddings)
    labels, probabilities = np.full(count, -1, np.int64), np.zeros(count, np.float32)
    rows = _sample(count, MAX_CLUSTERED)
    if count < max(min_size, 3):
        return labels, probabilities, len(rows)
    cluster = _sklearn("cluster").HDBSCAN
    # Copies of a recording have no distance, which is infinitely dense for HDBSCAN: they would be a cluster of their
    # own, and the recordings around them unclustered. So equal embeddings count once.
    order, place = _without_copies(embeddings[rows])
    if len(order) < max(min_size, 3):
        return labels, probabilities, len(rows)
    reduced = _reduced(embeddings[rows[order]])
    # Fewer recordings than with the default of `min_samples` stay unclustered, and labels agree better with the known
    # sounds of the demo's clips.
    found = cluster(min_cluster_size=min_size, min_samples=1, copy=True).fit(reduced)
    labels[rows], probabilities[rows] = found.labels_[place], found.probabilities_[place]
    others = np.setdiff1d(np.arange(count), rows)
    for begin in range(0, len(others), 1024):
        some = others[begin : begin + 1024]
        nearest = rows[(embeddings[some] @ embeddings[rows].T).argmax(axis=1)]
        labels[some], probabilities[some] = labels[nearest], probabilities[nearest]
    return _by_size(labels), probabilities, len(rows)


def _without_copies(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of each embedding, ascending, and for each row the place of its embedding among these."""
    _, different, copy_of = np.unique(embeddings, axis=0, return_index=True, return_inverse=True)
    order = np.sort(different)
    return order, np.searchsorted(order, different[copy_of.reshape(-1)])


def _by_size(labels: np.ndarray) -> np.ndarray:
    """The same labels, numbered by descending size; of equal ones, the one with the first recording first."""
    numbers, first, sizes = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    renumbered = np.full(int(labels.max(initial=-1)) + 2, -1, np.int64)  # the last one for label -1
    renumbered[numbers[np.lexsort((first, -sizes))]] = np.arange(len(numbers))
    return renumbered[labels]


def choose_names(scores: np.ndarray, texts: Sequence[str]) -> list[tuple[str, float]]:
    """A name for each cluster, all different, and the similarity of its nearest text.

    Args:
        scores: similarities `[clusters, texts]`.
        texts: to choose from.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    first = order[:, 0]
    named = scores.max(axis=1) > 0
    names: dict[str, float] = {}
    for row, best in enumerate(first.tolist()):
        base = texts[best] if named[row] else UNNAMED
        shared = named[row] and (first[named] == best).sum() > 1 and len(texts) > 1
        if shared and scores[row, order[row, 1]] > 0:
            base = f"{base}, {texts[order[row, 1]]}"
        name = base
        number = 1
        while name in names:
            number += 1
            name = f"{base} ({number})"
        names[name] = float(scores[row, best])
    return list(names.items())


def _sample(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` rows, ascending, the same at each call."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(_SEED).choice(count, limit, replace=False))


def _reduced(embeddings: np.ndarray) -> np.ndarray:
    """The main `_DIMENSIONS` dimensions."""
    if min(embeddings.shape) <= _DIMENSIONS:
        return embeddings
    return _sklearn("decomposition").PCA(_DIMENSIONS, random_state=_SEED).fit_transform(embeddings)


def _map(embeddings: np.ndarray) -> np.ndarray:
    count = len(embeddings)
    spread = embeddings - embeddings.mean(axis=0) if count else embeddings
    if count < 4 or not np.any(np.abs(spread) > 1e-6):  # t-SNE needs neighbors at a distance
        return np.stack([np.arange(count), np.zeros(count)], axis=1)
    tsne = _sklearn("manifold").TSNE
    perplexity = min(30.0, (count - 1) / 3)
    return tsne(
        perplexity=perplexity, init="random" if min(embeddings.shape) < 2 else "pca", random_state=_SEED
    ).fit_transform(_reduced(embeddings))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _sklearn(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingExtraError('clusters need scikit-learn: pip install "slap-fast[library]"') from error
