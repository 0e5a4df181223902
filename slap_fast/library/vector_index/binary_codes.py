"""Binary codes of a large library: 2 bits a dimension, of which a search reads all to name its candidates.

The codes are RaBitQ's (arXiv 2405.12497), in FAISS: a 16th of the bytes of the matrix, compared in registers. The exact
scores of the candidates then come from the matrix. How many candidates a result needs is measured when the codes are
built: the smallest number that finds `RECALL` of the ten nearest windows, for queries by sound (between stored windows)
and by text, which lie elsewhere than windows do.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from slap_fast.library.vector_index.exact_scores import exact_scores
from slap_fast.library.vector_index.stored_vectors import DamagedIndexError, StoredVectors, is_doubted

T = TypeVar("T")

logger = logging.getLogger(__name__)

MIN_WINDOWS = 200_000
"""With fewer windows a scan of the matrix takes less than 0.1 s."""
RECALL = 0.995
"""Share of the ten nearest windows that a search finds, over the queries that are tried when the codes are built."""

_PART = 1 << 17  # windows in a file; a search reads the files in parallel
_BITS = 2
_UNCOVERED_SHARE = 0.2  # of windows without codes, above which all codes are built again
_TRAINING = 1 << 16  # windows, of which the codes take the mean
_QUERIES = 256  # of each kind
_RESULTS = 10  # of a query that is tried
_FEWEST = 64  # candidates for so many results
_ROUNDING = 1e-5  # of a score
_MOST_SHARE = 1 / 16  # of the windows as candidates, above which a scan is as fast


class Candidates(NamedTuple):
    """The best windows, best first, and any whose embedding may be damaged, each with its exact score."""

    ids: np.ndarray  # [K] int64
    scores: np.ndarray  # [K] float32
    doubted_ids: np.ndarray  # [M] int64
    doubted_scores: np.ndarray  # [M] float32


class BinaryCodes:
    """Searches the first segments of an index.

    Attributes:
        segments: how many of them have codes.
        candidates: for ten results.
    """

    def __init__(self, stored: StoredVectors, parts: list[Any], segments: int, candidates: int) -> None:
        self.segments = segments
        self.candidates = candidates
        self._covered = stored.segments[:segments]
        self._parts = parts
        self._firsts = np.cumsum([0, *(part.ntotal for part in parts)])

    @classmethod
    def open(cls, stored: StoredVectors) -> BinaryCodes | None:
        """The codes of an index; None if it has none, or FAISS is not installed.

        Raises:
            DamagedIndexError: a file is damaged.
        """
        entry = stored.manifest["codes"]
        if entry is None or not entry["files"]:
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

        def read(name: str, checksum: int) -> Any:
            try:
                content = np.fromfile(stored.folder / name, np.uint8)
                if zlib.crc32(content.data) != checksum:  # codes only name candidates: nothing else would tell
                    raise DamagedIndexError(f"{stored.folder / name}: it was damaged after it was written")
                return faiss.deserialize_index(content)
            except (RuntimeError, OSError) as error:
                raise DamagedIndexError(f"{stored.folder / name}: cannot be read ({str(error)[:200]})") from error

        parts = _in_threads(read, entry["files"], entry["crc32"])
        covered = sum(len(segment.ids) for segment in stored.segments[: entry["segments"]])
        if sum(part.ntotal for part in parts) != covered or {part.d for part in parts} != {stored.manifest["width"]}:
            raise DamagedIndexError(f"{stored.folder}: the codes do not fit to the vectors beside them")
        return cls(stored, parts, int(entry["segments"]), int(entry["candidates"]))

    @classmethod
    def update(cls, stored: StoredVectors, *, queries: Callable[[], np.ndarray] | None = None) -> StoredVectors:
        """Build the codes if the library is large and they lack many windows; returns the index with them.

        Args:
            stored: on disk; its manifest is replaced.
            queries: as of `build`.

        Raises:
            OSError: a file cannot be written.
        """
        entry = stored.manifest["codes"]
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
        return stored.with_manifest(codes=_build(stored, None if queries is None else queries()))

    def serves(self, count: int) -> bool:
        """Whether so many results need few of the windows as candidates; a scan is right for more."""
        return self._depth(count) <= _MOST_SHARE * self._firsts[-1]

    def search(self, query: np.ndarray, count: int) -> Candidates | None:
        """The `count` best windows of the covered segments; None if only a scan can tell which they are.

        An embedding that is not of unit length is doubted: the matrix may be damaged where no other check reads it.
        """
        rows, approximate = self.nearest(query, self._depth(count))
        ids = _taken([segment.ids for segment in self._covered], rows)
        vectors = _taken([segment.vectors for segment in self._covered], rows)
        scores = exact_scores(vectors, np.arange(len(rows)), query)
        doubted = is_doubted(vectors)
        best = np.lexsort((ids, -scores))[:count]
        if len(rows) < self._firsts[-1] and len(best) and approximate[best].min() <= approximate.min():
            return None  # windows with the same code may have been left out, such as silence
        return Candidates(ids[best], scores[best], ids[doubted], scores[doubted])

    def nearest(self, query: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows `[K]` int64 of the `depth` windows whose codes are nearest, and their approximate scores, unordered."""

        def of_part(number: int) -> tuple[np.ndarray, np.ndarray]:
            part = self._parts[number]
            found, rows = part.search(query[None], min(depth, part.ntotal))
            some = rows[0] >= 0
            return rows[0][some] + self._firsts[number], found[0][some]

        if len(self._parts) == 1:
            return of_part(0)
        rows, scores = map(np.concatenate, zip(*_in_threads(of_part, range(len(self._parts))), strict=True))
        best = np.argpartition(-scores, min(depth, len(scores)) - 1)[:depth]
        return rows[best], scores[best]

    def needed(self, query: np.ndarray, truth: np.ndarray, most: int) -> np.ndarray:
        """How many candidates find each of the nearest windows, `[K]` int64 powers of two; above `most`: too few do.

        Args:
            query: `[D]` float32.
            truth: `[K]` scores of the nearest windows, descending.
            most: at least `_FEWEST`.
        """
        rows, approximate = self.nearest(query, most)
        order = np.argsort(-approximate)
        rows, approximate = rows[order], approximate[order]
        needed = np.full(len(truth), 2 * most)
        count = _FEWEST
        while count <= most:
            scores = _taken([segment.vectors for segment in self._covered], rows[:count]) @ query
            best = np.argsort(-scores)[: len(truth)]
            is_found = scores[best] >= truth[: len(best)] - _ROUNDING
            if approximate[best].min() <= approximate[:count][-1]:
                is_found[:] = True  # a search scans all windows then
            needed[np.flatnonzero(is_found & (needed > count))] = count
            if is_found.all():
                break
            count *= 2
        return needed

    def _depth(self, count: int) -> int:
        return self.candidates * max(1, -(-count // _RESULTS))


def _in_threads(work: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """What `work` gives for each part, in threads: neither FAISS nor the checksum holds Python's lock."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(work, *arguments))


def _is_sound(stored: StoredVectors) -> bool:
    try:
        BinaryCodes.open(stored)
    except DamagedIndexError as error:
        logger.warning("%s; it is written again", error)
        return False
    return True


def _build(stored: StoredVectors, queries: np.ndarray | None) -> dict[str, Any]:
    """Build and write the codes; returns their entry in the manifest, without files if a scan is better."""
    import faiss

    width = int(stored.manifest["width"])
    matrices = [segment.vectors for segment in stored.segments]
    generator = np.random.default_rng(0)

    def some_rows(count: int) -> np.ndarray:
        rows = generator.choice(stored.windows, min(stored.windows, count), replace=False)
        return _taken(matrices, np.sort(rows))

    sample = some_rows(_TRAINING)
    parts = []
    for begin in range(0, stored.windows, _PART):
        rotation = faiss.RandomRotationMatrix(width, width)
        rotation.init(0)
        codes = faiss.IndexRaBitQFastScan(width, faiss.METRIC_INNER_PRODUCT, 32, _BITS)
        part = faiss.IndexPreTransform(rotation, codes)
        part.train(sample)
        for first in range(begin, min(begin + _PART, stored.windows), 1 << 16):
            part.add(_taken(matrices, np.arange(first, min(first + (1 << 16), begin + _PART, stored.windows))))
        parts.append(part)
    tried = [_between(some_rows(_QUERIES))]
    if queries is not None and len(queries):
        tried.append(queries[generator.permutation(len(queries))[:_QUERIES]].astype(np.float32))
    candidates = _least_candidates(BinaryCodes(stored, parts, len(stored.segments), 0), stored, tried)
    entry: dict[str, Any] = {"segments": len(stored.segments), "candidates": candidates, "files": [], "crc32": []}
    if candidates is None:
        logger.warning(
            "%s: the codes of the windows are too similar to tell them apart, so each search scans all windows",
            stored.folder,
        )
        return entry
    for part in parts:
        content = faiss.serialize_index(part)
        entry["files"].append(stored.write_file("codes.faiss", content.tofile))
        entry["crc32"].append(zlib.crc32(content.data))
    return entry


def _between(vectors: np.ndarray) -> np.ndarray:
    """Queries by sound: between two windows, because a stored one would find itself."""
    mixed = vectors + 0.5 * np.roll(vectors, 1, axis=0)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def _least_candidates(built: BinaryCodes, stored: StoredVectors, tried: list[np.ndarray]) -> int | None:
    """The smallest power of two that has the recall with each kind of query; None if it is many of the windows."""
    most = int(_MOST_SHARE * stored.windows)
    if most < _FEWEST:
        return None
    candidates = 0
    for queries in tried:
        truths = _nearest_scores(stored, queries, _RESULTS)
        needed = [built.needed(query, truth, most) for query, truth in zip(queries, truths, strict=True)]
        candidates = max(candidates, int(np.quantile(np.concatenate(needed), RECALL, method="higher")))
    return candidates if candidates <= most else None


def _nearest_scores(stored: StoredVectors, queries: np.ndarray, count: int) -> np.ndarray:
    """Scores of the `count` nearest windows of each query, `[Q, count]` descending, by a scan of all."""
    scores = np.empty((len(queries), 0), np.float32)
    for segment in stored.segments:
        for begin in range(0, len(segment.ids), 1 << 16):
            scores = np.concatenate([scores, queries @ segment.vectors[begin : begin + (1 << 16)].T], axis=1)
            scores = -np.partition(-scores, min(count, scores.shape[1]) - 1, axis=1)[:, :count]
    return -np.sort(-scores, axis=1)


def _taken(arrays: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows of arrays that are one after the other, in any order."""
    taken = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
    start = 0
    for array in arrays:
        inside = np.flatnonzero((rows >= start) & (rows < start + len(array)))
        taken[inside] = array[rows[inside] - start]
        start += len(array)
    return taken
