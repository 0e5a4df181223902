"""Vector index of a library: the windows most similar to a query.

The index is derived from the database, in LIBRARY/vectors/: a matrix of all embeddings, which a search maps into memory
and scans, and for large libraries binary codes (FAISS), which name the candidates of a search. Windows that are
newer than the index are read from the database, and every result is looked up there: what was removed is no result.
Without the index, or if it is damaged, a search reads all embeddings from the database, with the same results.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from slap_fast.library.database import Database
from slap_fast.library.vector_index.binary_codes import BinaryCodes
from slap_fast.library.vector_index.exact_scores import exact_scores
from slap_fast.library.vector_index.stored_vectors import DamagedIndexError, Segment, StoredVectors, is_doubted

logger = logging.getLogger(__name__)

_KEPT_WINDOWS = 50_000
"""Windows newer than the index that are kept in memory between searches; more are read again for each."""
_CHECKED = 64  # best results whose embeddings are compared with the database
_TOLERANCE = 1e-3
_ROUNDING = 1e-6  # of the scores of a matrix product, which may differ for equal rows
_NOT_USED = "%s; it is not used, and searches are slow: delete that folder, and run `slap-fast index` on the library"


class Neighbors(NamedTuple):
    """Ids of windows and their scores, best first; ties in ascending order of id."""

    ids: np.ndarray  # [K] int64
    scores: np.ndarray  # [K] float32


class VectorIndex:
    """Searches the windows of a database, which other processes may change meanwhile. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._stored: StoredVectors | None = None
        self._codes: BinaryCodes | None = None
        self._newer_after = -1
        self._newer: list[tuple[np.ndarray, np.ndarray]] = []

    def search(self, query: np.ndarray, count: int, *, among: np.ndarray | None = None) -> Neighbors:
        """The `count` windows with the highest inner product with `query` `[D]` float32; fewer if there are no more.

        Exact; in a library with binary codes, and without `among`, with a measured recall of `binary_codes.RECALL` in
        the first ten.

        Args:
            among: `[M]` int64, ascending: ids of the windows to search in; None: all.

        Raises:
            LibraryError: the database cannot be read.
        """
        query = np.ascontiguousarray(query, np.float32)
        with self._lock:
            self._refresh()
            try:
                return self._search(query, count, among)
            except DamagedIndexError as error:
                logger.warning(_NOT_USED, error)
                self._stored = self._codes = None
                return self._search(query, count, among)

    def _refresh(self) -> None:
        """Take the newest index on disk."""
        try:
            newest = StoredVectors.open(self._database, instead_of=self._stored)
            if newest is not self._stored:
                self._codes = None if newest is None else BinaryCodes.open(newest)
                self._stored = newest
        except DamagedIndexError as error:
            if self._stored is not None or self._newer_after != 0:
                logger.warning(_NOT_USED, error)
            self._stored = self._codes = None

    def _search(self, query: np.ndarray, count: int, among: np.ndarray | None) -> Neighbors:
        wanted = count
        while True:
            ids, scores = self._candidates(query, wanted, among)
            existing = self._database.places(ids.tolist())
            kept = np.array([number in existing for number in ids.tolist()], bool)
            self._check_scores(query, ids[kept][:_CHECKED], scores[kept][:_CHECKED])
            if kept.sum() >= count or len(ids) < wanted:
                return Neighbors(ids[kept][:count], scores[kept][:count])
            wanted = 2 * wanted  # removed windows are still in the index

    def _candidates(self, query: np.ndarray, count: int, among: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores of the best `count` windows, best first, of which some may have been removed."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        if self._stored is not None:
            first = 0
            if self._codes is not None and among is None and self._codes.serves(count):
                found = self._codes.search(query, count)
                if found is not None:
                    self._check_scores(query, found.doubted_ids, found.doubted_scores)
                    parts.append((found.ids, found.scores))
                    first = self._codes.segments
            for segment in self._stored.segments[first:]:
                if among is None:
                    parts.append(_best(segment.ids, segment.scores(query), segment.vectors, query, count))
                else:
                    parts += self._best_of_rows(segment, np.flatnonzero(_isin(segment.ids, among)), query, count)
        for ids, newer in self._newer_windows():
            inside = slice(None) if among is None else _isin(ids, among)
            parts.append(_best(ids[inside], newer[inside] @ query, newer[inside], query, count))
        ids = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.int64)
        scores = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.float32)
        best = np.lexsort((ids, -scores))[:count]
        return ids[best], scores[best]

    def _best_of_rows(
        self, segment: Segment, rows: np.ndarray, query: np.ndarray, count: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and scores of the best of some rows of a segment, of which a sum over all says nothing."""
        for some in np.array_split(rows, max(1, len(rows) >> 16)):
            ids, vectors = segment.ids[some], segment.vectors[some]
            scores = vectors @ query
            doubted = np.flatnonzero(is_doubted(vectors))[:_CHECKED]
            self._check_scores(query, ids[doubted], scores[doubted])
            yield _best(ids, scores, vectors, query, count)

    def _newer_windows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and embeddings of the windows that the index does not have, in parts."""
        after = 0 if self._stored is None else self._stored.last
        if after != self._newer_after:
            self._newer_after, self._newer = after, []
        yield from self._newer
        windows = sum(len(ids) for ids, _ in self._newer)
        for ids, vectors in self._database.vectors(after=int(self._newer[-1][0][-1]) if self._newer else after):
            windows += len(ids)
            if windows <= _KEPT_WINDOWS:
                self._newer.append((ids, vectors))
            yield ids, vectors

    def _check_scores(self, query: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
        if self._stored is None:
            return
        vectors = self._database.vectors_of(ids.tolist())
        for number, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if number in vectors and not abs(float(vectors[number] @ query) - score) <= _TOLERANCE:
                raise DamagedIndexError(f"{self._stored.folder}: it differs from the library")


def build(database: Database, *, queries: Callable[[], np.ndarray] | None = None) -> None:
    """Bring the index of a library up to date. The caller holds the lock of the library.

    Windows that are new are appended. If many were removed, all is written again.

    Args:
        database: of the library.
        queries: gives `[Q, D]` float32 embeddings of texts that people may search for, to which the search of a large
            library is adjusted; called only for one.

    Raises:
        OSError: it cannot be written; an earlier index stays.
    """
    stored = StoredVectors.update(database)
    stored = BinaryCodes.update(stored, queries=queries)
    stored.remove_unused_files()


def _isin(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of `ids` are in `among`, both ascending."""
    if not len(among):
        return np.zeros(len(ids), bool)
    place = np.searchsorted(among, ids).clip(max=len(among) - 1)
    return among[place] == ids


def _best(
    ids: np.ndarray, scores: np.ndarray, vectors: np.ndarray, query: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the `count` best rows, in any order; of equal scores, those with the lowest ids."""
    rows = np.arange(len(scores))
    if count < len(scores):
        # Equal rows may differ in the last bits of a matrix product: all that could be among the best, which are many
        # in a library with much silence, are compared anew.
        cut = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= cut - 2 * _ROUNDING)
    exact = exact_scores(vectors, rows, query)
    best = np.argsort(-exact, kind="stable")[:count]  # ids ascend
    return ids[rows[best]], exact[best]
