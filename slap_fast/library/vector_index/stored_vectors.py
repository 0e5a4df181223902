"""Stored vectors of a library: the embeddings of its windows as matrices on disk, in segments that are appended.

`current.json` names the files that belong together. It is replaced last, so readers see the old index or the new one;
files that it does not name are deleted after it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slap_fast.errors import SlapFastError
from slap_fast.library.database import Database
from slap_fast.runtime.durable_files import replace_file_with, replace_text

logger = logging.getLogger(__name__)

FOLDER = "vectors"

_MANIFEST = "current.json"
_FORMAT = 3
_MAX_SEGMENTS = 8
_REMOVED_SHARE = 0.2  # of the windows in the index, above which it is written again
_SAMPLE = 256  # of the embeddings of a segment, which an update compares with the database
_FEW_WINDOWS = 1000  # new ones that are not worth a segment
_TAIL = 16  # of the newest embeddings, which are compared with the database whenever the index is opened
_UNIT_TOLERANCE = 1e-3  # of the squared length of an embedding
_SUM_TOLERANCE = 0.02  # of the sum of the scores of a segment, which rounding changes far less


class DamagedIndexError(SlapFastError, ValueError):
    """The files of the index do not belong together, or to this library."""


class Segment(NamedTuple):
    """Ids of windows `[n]` int64, ascending, their embeddings `[n, D]` float32, mapped from a file, and the sum of
    these `[D]` float64, as it was when they were written."""

    ids: np.ndarray
    vectors: np.memmap
    total: np.ndarray

    def scores(self, query: np.ndarray) -> np.ndarray:
        """`[n]` float32 inner products with `query` `[D]`.

        Raises:
            DamagedIndexError: they do not add up: the file was damaged after it was written.
        """
        scores = self.vectors @ query
        error = abs(float(scores.sum(dtype=np.float64)) - float(self.total @ query))
        if not error <= _SUM_TOLERANCE + 1e-7 * len(scores):  # NaN is damage too
            raise DamagedIndexError(f"{self.vectors.filename}: it was damaged after it was written")
        return scores


@dataclass(frozen=True)
class StoredVectors:
    """The matrices of one state of the index.

    Attributes:
        folder: LIBRARY/vectors.
        manifest: content of `current.json`.
        segments: ascending in their ids.
    """

    folder: Path
    manifest: dict[str, Any]
    segments: tuple[Segment, ...]

    @property
    def last(self) -> int:
        """Highest id of a window in the index; 0 if there is none."""
        return int(self.manifest["last"])

    @property
    def windows(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)

    @classmethod
    def open(cls, database: Database, *, instead_of: StoredVectors | None = None) -> StoredVectors | None:
        """The index of a library; None if it has none.

        Args:
            instead_of: returned if it is still the newest one.

        Raises:
            DamagedIndexError: a file is damaged, or of another library.
        """
        folder = database.path.parent / FOLDER
        for _ in range(5):
            try:
                manifest = json.loads((folder / _MANIFEST).read_bytes())
                if instead_of is not None and manifest == instead_of.manifest:
                    return instead_of
                _check(manifest, database)
                opened = cls(folder, manifest, tuple(_read(folder, entry, manifest) for entry in manifest["segments"]))
                opened._check_tail(database)
            except FileNotFoundError as error:
                if os.path.basename(error.filename) == _MANIFEST:
                    return None
                missing = error  # of an index that another process replaced just now, or one that is damaged
            except DamagedIndexError:
                raise
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                raise DamagedIndexError(f"{folder}: the index cannot be read ({error})") from error
            else:
                return opened
        raise DamagedIndexError(f"{folder}: the index lacks {os.path.basename(missing.filename)}")

    @classmethod
    def update(cls, database: Database) -> StoredVectors:
        """Append what is new, or write all again, and return the result.

        Raises:
            OSError: a file cannot be written.
        """
        folder = database.path.parent / FOLDER
        folder.mkdir(exist_ok=True)
        try:
            stored = cls.open(database)
            if stored is not None:
                stored._check_sample(database)
        except DamagedIndexError as error:
            logger.warning("%s; it is written again", error)
            stored = None
        ids = database.window_recordings()[0]
        if stored is not None:
            indexed = np.concatenate([segment.ids for segment in stored.segments] or [np.empty(0, np.int64)])
            removed = len(indexed) - int(np.isin(indexed, ids, assume_unique=True).sum())
            new = ids[ids > stored.last]
            if removed <= _REMOVED_SHARE * len(indexed) and len(stored.segments) < _MAX_SEGMENTS:
                return stored._with_segment(database, new) if len(new) >= _FEW_WINDOWS else stored
        empty = {"format": _FORMAT, "library": database.meta["id"], "width": database.meta["width"]}
        return cls(folder, {**empty, "segments": [], "last": 0, "codes": None}, ())._with_segment(database, ids)

    def with_manifest(self, **changed: Any) -> StoredVectors:
        """Replace entries of the manifest, on disk."""
        manifest = {**self.manifest, **changed}
        replace_text(self.folder / _MANIFEST, json.dumps(manifest))
        return replace(self, manifest=manifest)

    def write_file(self, name: str, write: Callable[[Path], None]) -> str:
        """Write a new file, which the manifest does not name yet; returns its name."""
        stem, _, suffix = name.partition(".")
        unique = f"{stem}-{secrets.token_hex(6)}.{suffix}"
        replace_file_with(self.folder / unique, write)
        return unique

    def remove_unused_files(self) -> None:
        """Delete the files of earlier states. Processes that have them open can go on reading them."""
        used = {_MANIFEST, *(entry[key] for entry in self.manifest["segments"] for key in ("ids", "vectors"))}
        if self.manifest["codes"] is not None:
            used.update(self.manifest["codes"]["files"])
        for path in self.folder.iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)

    def _check_tail(self, database: Database) -> None:
        """Compare the newest embeddings with the database: an older one that was copied back gives ids out again."""
        if database.last_window_ever() < self.last:
            raise DamagedIndexError(f"{self.folder}: it is of a newer state of the library, which was copied back")
        for ids, vectors, _ in self.segments:
            in_database = database.vectors_of(ids[-_TAIL:].tolist())
            for number, vector in zip(ids[-_TAIL:].tolist(), vectors[-_TAIL:], strict=True):
                if number in in_database and not np.array_equal(in_database[number], vector):
                    raise DamagedIndexError(f"{self.folder}: it is of another state of the library")

    def _check_sample(self, database: Database) -> None:
        """Compare some embeddings with the database, to find damage that keeps the shape of a file."""
        generator = np.random.default_rng(0)
        for ids, vectors, _ in self.segments:
            rows = np.unique(generator.integers(len(ids), size=_SAMPLE))
            in_database = database.vectors_of(ids[rows].tolist())
            for row in rows.tolist():
                if (stored := in_database.get(int(ids[row]))) is not None and not np.array_equal(stored, vectors[row]):
                    raise DamagedIndexError(f"{self.folder}: it differs from the library")

    def _with_segment(self, database: Database, ids: np.ndarray) -> StoredVectors:
        """This state with a segment of the windows with these ids, on disk."""
        if not len(ids):
            return self.with_manifest()
        width = int(database.meta["width"])
        total = np.zeros(width)

        def write(path: Path) -> None:
            matrix = np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), width))
            begin = 0
            for some, vectors in database.vectors(after=int(ids[0]) - 1, until=int(ids[-1])):
                if not np.array_equal(some, ids[begin : begin + len(some)]):
                    raise RuntimeError("the library changed while its index was built: its lock is not held")
                matrix[begin : begin + len(some)] = vectors
                np.add(total, vectors.sum(axis=0, dtype=np.float64), out=total)
                begin += len(some)
            matrix.flush()

        def write_ids(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, ids)

        entry: dict[str, Any] = {
            "vectors": self.write_file("vectors.npy", write),
            "ids": self.write_file("ids.npy", write_ids),
            "windows": len(ids),
            "ids_crc32": zlib.crc32(ids.tobytes()),
        }
        entry["sum"] = total.tolist()
        grown = replace(self, segments=(*self.segments, _read(self.folder, entry, self.manifest)))
        return grown.with_manifest(segments=[*self.manifest["segments"], entry], last=int(ids[-1]))


def is_doubted(vectors: np.ndarray) -> np.ndarray:
    """Which of `[n, D]` stored embeddings may be damaged, `[n]` bool: damage rarely leaves their length, which is 1."""
    lengths = np.einsum("ij,ij->i", vectors, vectors)
    return ~(np.abs(lengths - 1) <= _UNIT_TOLERANCE)  # NaN too


def _check(manifest: dict[str, Any], database: Database) -> None:
    expected = {"format": _FORMAT, "library": database.meta["id"], "width": database.meta["width"]}
    for key, value in expected.items():
        if manifest.get(key) != value:
            raise DamagedIndexError(
                f"{database.path.parent / FOLDER}: the index is of another library or version ({key} is "
                f"{manifest.get(key)!r}, not {value!r})"
            )


def _read(folder: Path, entry: dict[str, Any], manifest: dict[str, Any]) -> Segment:
    ids = np.load(folder / entry["ids"], allow_pickle=False)
    vectors = np.load(folder / entry["vectors"], mmap_mode="r", allow_pickle=False)
    shape = (entry["windows"], manifest["width"])
    if ids.dtype != np.int64 or ids.shape != shape[:1] or vectors.dtype != np.float32 or vectors.shape != shape:
        raise DamagedIndexError(f"{folder}: {entry['vectors']} and {entry['ids']} do not fit together")
    if not (ids[1:] > ids[:-1]).all() or zlib.crc32(ids.tobytes()) != entry["ids_crc32"]:
        raise DamagedIndexError(f"{folder}: {entry['ids']} is damaged")
    return Segment(ids, vectors, np.array(entry["sum"], np.float64))
