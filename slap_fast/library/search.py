"""Search of a library: from a query vector to the best moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Protocol

import numpy as np

from slap_fast.library.database import Database
from slap_fast.library.moment_merging import ScoredWindow, Span, merge_windows
from slap_fast.library.moments import Moment
from slap_fast.library.vector_index import Neighbors

NOT_WEIGHT = 0.5
"""Weight of what a result must not sound like, against 1 for what it must."""

_FIRST_DEPTH = 256  # windows that are asked for at first: of a few moments each


class Searchable(Protocol):
    """What finds windows: `VectorIndex`, or an engine of another machine."""

    def search(self, query: np.ndarray, count: int, *, among: np.ndarray | None = None) -> Neighbors: ...


def combine(wanted: np.ndarray, unlike: np.ndarray) -> np.ndarray:
    """`[D]` float32 query: the mean of `wanted` `[N, D]` minus half of the mean of `unlike` `[M, D]`, all unit length.

    So a score is the mean cosine similarity with what is wanted, minus half of that with what is not.
    """
    query = wanted.mean(axis=0, dtype=np.float64)
    if len(unlike):
        query -= NOT_WEIGHT * unlike.mean(axis=0, dtype=np.float64)
    return query.astype(np.float32)


def find_moments(
    database: Database,
    index: Searchable,
    query: np.ndarray,
    *,
    top: int,
    among: np.ndarray | None = None,
    min_score: float | None = None,
    taken: Sequence[tuple[int, float, float]] = (),
) -> list[Moment]:
    """The `top` moments with the highest scores, best first; fewer if there are no more.

    Args:
        database: of the library.
        index: finds its windows.
        query: `[D]` float32.
        top: at least 1.
        among: `[M]` int64, ascending: ids of the windows to search in; None: all.
        min_score: least score of a result.
        taken: as in `merge_windows`.
    """
    depth = max(_FIRST_DEPTH, 8 * top)
    while True:
        found = index.search(query, depth, among=among)
        with database.snapshot():
            near = _near(database, query)
            windows = _placed(database, found)
            if min_score is not None:
                windows = takewhile(lambda window: window.score >= min_score, windows)
            moments = _named(database, list(islice(merge_windows(windows, near, taken=taken), top)))
        below = min_score is not None and len(found.scores) > 0 and float(found.scores[-1]) < min_score
        if len(moments) == top or len(found.ids) < depth or below:
            return moments
        depth *= 8  # most windows overlap few moments: of a long recording of the same sound


def _placed(database: Database, found: Neighbors) -> Iterator[ScoredWindow]:
    places = database.places(found.ids.tolist())
    for number, score in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
        if (place := places.get(number)) is not None:  # else it was removed a moment ago
            yield ScoredWindow(*place, score)


def _near(database: Database, query: np.ndarray) -> Callable[[int, float, float], list[ScoredWindow]]:
    def near(recording: int, start: float, end: float) -> list[ScoredWindow]:
        places = database.windows_near(recording, start, end)
        vectors = database.vectors_of([place.id for place in places])
        return [ScoredWindow(*place, float(vectors[place.id] @ query)) for place in places]

    return near


def _named(database: Database, spans: list[Span]) -> list[Moment]:
    recordings = database.recordings_of([span.best.recording for span in spans])
    return [
        Moment(
            recordings[span.best.recording].path,
            recordings[span.best.recording].member,
            span.start,
            span.end,
            span.best.score,
            recordings[span.best.recording].seconds,
            span.best.id,
        )
        for span in spans
    ]
