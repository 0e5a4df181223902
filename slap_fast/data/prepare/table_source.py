"""Table source: merges the rows of a table that refer to the same audio into one clip."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.data.format.captions import clean_captions
from slap_fast.data.format.dataset_files import DatasetError, file_digest
from slap_fast.data.prepare.source import ClipItem, Rejection

Identity = tuple[str | bytes, ...]
"""Identifies the audio of a row (path, content, segment). Rows with equal identities are merged; empty ones never."""


class TableSource:
    """Base class of sources whose rows may refer to the same audio: their captions are merged at the first row.

    Subclasses implement `rows`. The table is read up to three times instead of being stored: memory is 8 bytes per row,
    and the captions of audio with several rows.
    """

    seen: int = 0
    _hashes: array[int] | None = None
    _distinct: int = 0
    _repeated: frozenset[int] = frozenset()

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        """Yields the rows with the identities of their audio."""
        raise NotImplementedError

    def count(self) -> int:
        if self._hashes is None:
            hashes = array("Q")
            self.seen = 0
            for identity, item in self.rows():
                self.seen += item.seen
                hashes.append(_hash(identity) if identity and isinstance(item, ClipItem) else 0)
            values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
            unmerged = int(counts[values == 0].sum())
            self._repeated = frozenset(values[(counts > 1) & (values > 0)].tolist())
            self._distinct = unmerged + int((values > 0).sum())
            self._hashes = hashes
        return self._distinct

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.count()
        captions: dict[int, list[str]] = {}
        merged_rows: Counter[int] = Counter()
        if self._repeated:
            for digest, item in self._rows_again():
                if digest in self._repeated:
                    merged_rows[digest] += item.seen
                    if isinstance(item, ClipItem):
                        captions.setdefault(digest, []).extend(item.captions)
        for digest, item in self._rows_again():
            if digest not in self._repeated:
                yield item
            elif isinstance(item, ClipItem) and digest in captions:
                merged = clean_captions(captions.pop(digest))
                yield replace(item, captions=merged, seen=merged_rows[digest])

    def _rows_again(self) -> Iterator[tuple[int, ClipItem | Rejection]]:
        """The rows with the hashes of their identities from `count`."""
        assert self._hashes is not None
        rows = 0
        for rows, (_, item) in enumerate(self.rows(), 1):
            if rows > len(self._hashes):
                break
            yield self._hashes[rows - 1], item
        if rows != len(self._hashes):
            raise DatasetError("the table changed while it was being read; run the command again")


def name_of_tables(paths: Sequence[Path]) -> str:
    """The name of a single table, or of the common folder of several."""
    return (
        paths[0].stem if len(paths) == 1 else Path(os.path.commonpath([path.resolve().parent for path in paths])).name
    )


def describe_tables(paths: Sequence[Path]) -> dict[str, Any]:
    """Paths and SHA-256 digests of tables, for `Source.describe`; lists if there are several tables."""
    resolved, digests = [str(path.resolve()) for path in paths], [file_digest(path, hashlib.sha256()) for path in paths]
    return {"path": resolved, "sha256": digests} if len(paths) > 1 else {"path": resolved[0], "sha256": digests[0]}


def _hash(identity: Identity) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in identity:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    # 0 is reserved for rows that are never merged.
    return int.from_bytes(digest.digest(), "little") or 1
