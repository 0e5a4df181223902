"""Inverted file of a large library: FAISS lists of similar windows, of which a search reads a few.

Vectors are stored with 8 bits a dimension, and the best candidates are compared anew in float32. How many lists a
search reads (`nprobe`) is measured when the lists are built: the smallest number that finds `RECALL` of the ten nearest
windows, for queries by sound (held-out windows) and by text, which lie elsewhere than windows do. If it takes most
lists, there is no inverted file, and a search scans all windows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slap_fast.library.vector_index.exact_scores import exact_scores
from slap_fast.library.vector_index.stored_vectors import DamagedIndexError, StoredVectors

if TYPE_CHECKING:
    import faiss

logger = logging.getLogger(__name__)

MIN_WINDOWS = 200_000
"""With fewer windows a scan of all takes less than 0.1 s."""
RECALL = 0.995
"""Share of the ten nearest windows that a search finds, over the queries that are tried when the lists are built."""

_UNCOVERED_SHARE = 0.2  # of windows that no list has, above which the lists are built again
_TRAINING_PER_LIST = 40  # FAISS warns below 39
_QUERIES = 256  # of each kind
_CANDIDATES = 4  # that are compared anew, for each result
_MOST_LISTS = 0.25  # share of the lists above which a scan of all windows is as fast
_ROUNDING = 1e-6  # of the scores of equal vectors
_DOUBTED = 0.02  # difference of a score by 8 bits from the exact one, far above that of a sound file


class Candidates(NamedTuple):
    """The best windows, best first, and any whose embedding may be damaged, each with its exact score."""

    ids: np.ndarray  # [K] int64
    scores: np.ndarray  # [K] float32
    doubted_ids: np.ndarray  # [M] int64
    doubted_scores: np.ndarray  # [M] float32


class InvertedFile:
    """Searches the first segments of an index.

    Attributes:
        segments: how many of them the lists cover.
    """

    def __init__(self, stored: StoredVectors, index: faiss.IndexIVF, nprobe: int, segments: int) -> None:
        self.segments = segments
        self._folder = stored.folder
        self._covered = stored.segments[:segments]
        self._starts = np.cumsum([0, *(len(segment.ids) for segment in self._covered)])
        self._index = index
        self._index.nprobe = nprobe
        self._index.parallel_mode = 1  # over lists: there is one query

    @classmethod
    def open(cls, stored: StoredVectors) -> InvertedFile | None:
        """The inverted file of an index; None if it has none, or FAISS is not installed.

        Raises:
            DamagedIndexError: the file is damaged.
        """
        entry = stored.manifest["inverted"]
        if entry is None or not entry.get("file"):
            return None
        try:
            import faiss
        except ImportError:
            logger.warning(
                '%s: the fast search of a large library needs FAISS: pip install "slap-fast[library]"; all windows are '
                "scanned",
                stored.folder,
            )
            return None
        path = stored.folder / entry["file"]
        try:
            if path.stat().st_size != entry["bytes"]:
                raise DamagedIndexError(f"{path}: the file has another size than when it was written")
            index: Any = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP)
            covered = sum(len(segment.ids) for segment in stored.segments[: entry["segments"]])
            sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
            if index.ntotal != covered or sum(sizes) != covered or index.d != stored.manifest["width"]:
                raise DamagedIndexError(f"{path}: it does not fit to the vectors beside it")
        except (RuntimeError, OSError, UnicodeError, AttributeError) as error:
            raise DamagedIndexError(f"{path}: cannot be read ({str(error)[:200]})") from error
        return cls(stored, index, int(entry["nprobe"]), int(entry["segments"]))

    @classmethod
    def update(cls, stored: StoredVectors, *, queries: Callable[[], np.ndarray] | None = None) -> StoredVectors:
        """Build the lists if the library is large and they lack many windows; returns the index with them.

        Args:
            stored: on disk; its manifest is replaced.
            queries: as of `build`.

        Raises:
            OSError: the file cannot be written.
        """
        entry = stored.manifest["inverted"]
        if stored.windows < MIN_WINDOWS:
            return stored
        if entry is not None and _is_sound(stored):
            covered = sum(len(segment.ids) for segment in stored.segments[: entry["segments"]])
            if stored.windows - covered <= _UNCOVERED_SHARE * stored.windows:
                return stored
        try:
            import faiss
        except ImportError:
            logger.warning('the fast search of a large library needs FAISS: pip install "slap-fast[library]"')
            return stored
        del faiss
        return stored.with_manifest(inverted=_build(stored, None if queries is None else queries()))

    def serves(self, count: int) -> bool:
        """Whether so many results are few of the windows that a search reads; a scan is right for more."""
        read = self._starts[-1] * self._index.nprobe // self._index.nlist
        return bool(count * _CANDIDATES <= read // 4)

    def search(self, query: np.ndarray, count: int) -> Candidates | None:
        """The `count` best windows of the covered segments; None if only a scan can tell which they are.

        A score that differs from the one that the lists have, of 8 bits a dimension, is doubted: the matrix may be
        damaged where no other check reads it. Of a sound library, few are: windows unlike all that the lists were
        trained on.
        """
        found, numbers = self._index.search(query[None], max(100, _CANDIDATES * count))
        is_some = numbers[0] >= 0
        rows, unique = np.unique(numbers[0][is_some], return_index=True)
        approximate = found[0][is_some]
        if len(rows) and rows[-1] >= self._starts[-1]:
            raise DamagedIndexError(f"{self._folder}: the inverted file is damaged")
        if len(rows) < min(count, self._starts[-1]):
            return None  # the lists that were read have fewer
        if is_some.all() and approximate[count - 1] - approximate[-1] <= _ROUNDING:
            return None  # more windows with the same score, of which some were left out
        ids, scores = [], []
        for segment, start, end in zip(self._covered, self._starts[:-1], self._starts[1:], strict=True):
            inside = rows[(rows >= start) & (rows < end)] - start
            ids.append(segment.ids[inside])
            scores.append(exact_scores(segment.vectors, inside, query))
        all_ids, all_scores = np.concatenate(ids), np.concatenate(scores)
        best = np.lexsort((all_ids, -all_scores))[:count]
        doubted = ~(np.abs(all_scores - approximate[unique]) <= _DOUBTED)  # NaN too
        return Candidates(all_ids[best], all_scores[best], all_ids[doubted], all_scores[doubted])


def _is_sound(stored: StoredVectors) -> bool:
    try:
        InvertedFile.open(stored)
    except DamagedIndexError as error:
        logger.warning("%s; it is written again", error)
        return False
    return True


def _build(stored: StoredVectors, queries: np.ndarray | None) -> dict[str, Any]:
    """Build and write the lists; returns their entry in the manifest, without a file if a scan is better."""
    import faiss

    width = int(stored.manifest["width"])
    lists = 1 << int(np.log2(2 * np.sqrt(stored.windows)))
    quantizer = faiss.IndexFlatIP(width)
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, kind, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    index.cp.niter = 10
    generator = np.random.default_rng(0)
    sample = np.sort(generator.choice(stored.windows, min(stored.windows, _TRAINING_PER_LIST * lists), replace=False))
    index.train(_rows(stored, sample))
    for segment in stored.segments:
        for begin in range(0, len(segment.ids), 1 << 16):
            index.add(np.ascontiguousarray(segment.vectors[begin : begin + (1 << 16)]))
    held_out = _rows(stored, np.sort(generator.choice(stored.windows, _QUERIES, replace=False)))
    tried = [_between(held_out)]
    if queries is not None and len(queries):
        tried.append(queries[generator.permutation(len(queries))[:_QUERIES]].astype(np.float32))
    built = InvertedFile(stored, index, 1, len(stored.segments))
    nprobe = _least_nprobe(built, stored, tried, lists)
    entry: dict[str, Any] = {"segments": len(stored.segments), "lists": lists, "nprobe": nprobe, "file": None}
    if nprobe is None:
        logger.warning(
            "%s: windows that are similar are spread over all lists, so each search scans all windows", stored.folder
        )
        return entry
    name = stored.write_file("inverted.faiss", lambda path: faiss.write_index(index, os.fspath(path)))
    return {**entry, "file": name, "bytes": Path(stored.folder, name).stat().st_size}


def _between(vectors: np.ndarray) -> np.ndarray:
    """Queries by sound: between two windows, because a stored one would find itself."""
    mixed = vectors + 0.5 * np.roll(vectors, 1, axis=0)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def _least_nprobe(built: InvertedFile, stored: StoredVectors, tried: list[np.ndarray], lists: int) -> int | None:
    """The smallest power of two that has the recall with each kind of query; None if it is most lists."""
    truths = [_nearest(stored, queries, 10) for queries in tried]
    nprobe = 8
    while nprobe <= _MOST_LISTS * lists:
        built._index.nprobe = nprobe
        recalls = []
        for queries, truth in zip(tried, truths, strict=True):
            found = [built.search(query, 10) for query in queries]
            recalls.append(
                np.mean(
                    [
                        1.0 if one is None else len(np.intersect1d(one.ids, true)) / 10  # None: a scan finds all
                        for one, true in zip(found, truth, strict=True)
                    ]
                )
            )
        if min(recalls) >= RECALL:
            return nprobe
        nprobe *= 2
    return None


def _nearest(stored: StoredVectors, queries: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` nearest windows of each query, `[Q, count]`, by a scan of all."""
    ids = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for segment in stored.segments:
        for begin in range(0, len(segment.ids), 1 << 16):
            block = segment.vectors[begin : begin + (1 << 16)]
            scores = np.concatenate([scores, queries @ block.T], axis=1)
            more = np.broadcast_to(segment.ids[begin : begin + (1 << 16)], (len(queries), len(block)))
            ids = np.concatenate([ids, more], axis=1)
            best = np.argpartition(-scores, min(count, scores.shape[1]) - 1, axis=1)[:, :count]
            ids, scores = np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
    return ids


def _rows(stored: StoredVectors, rows: np.ndarray) -> np.ndarray:
    """`[N, D]` float32: rows of all segments one after the other, ascending."""
    start, parts = 0, []
    for segment in stored.segments:
        inside = rows[(rows >= start) & (rows < start + len(segment.ids))] - start
        parts.append(np.asarray(segment.vectors[inside]))
        start += len(segment.ids)
    return np.concatenate(parts)
