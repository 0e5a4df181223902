"""Vector index of a library: the windows most similar to a query."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slap_fast.library.database import Database


class Neighbors(NamedTuple):
    """Ids of windows and their scores, best first; ties in ascending order of id."""

    ids: np.ndarray  # [K] int64
    scores: np.ndarray  # [K] float32


class VectorIndex:
    """Searches the windows of a database. Exact."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def search(self, query: np.ndarray, count: int, *, among: np.ndarray | None = None) -> Neighbors:
        """The `count` windows with the highest inner product with `query` `[D]` float32.

        Args:
            among: `[M]` int64, ascending: ids of the windows to search in; None: all.
        """
        ids, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for some, matrix in self._database.vectors():
            ids.append(some)
            scores.append(matrix @ query)
        all_ids, all_scores = np.concatenate(ids), np.concatenate(scores)
        if among is not None:
            kept = np.isin(all_ids, among)
            all_ids, all_scores = all_ids[kept], all_scores[kept]
        best = np.lexsort((all_ids, -all_scores))[:count]
        return Neighbors(all_ids[best], all_scores[best])
