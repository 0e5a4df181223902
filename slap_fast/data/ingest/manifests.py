"""Tables that list captioned audio: CSV, TSV, JSON, JSON lines and Parquet, read a row at a time."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.data.captions import caption_columns, captions_of, clean_captions
from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.ingest.clip_items import BytesAudio, ClipItem, FileAudio, Rejection

MANIFEST_EXTENSIONS = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"})

_AUDIO_COLUMNS = (
    *("audio", "audio_path", "audio_file", "audio_filepath", "audio_filename", "path", "filepath", "file_path"),
    *("file", "filename", "file_name", "wav", "wav_path", "wav_file"),
)
_PARQUET_ROWS = 64  # a row may hold a whole audio file
_MISSING = frozenset({"", "nan", "none", "null"})


class RowSource:
    """A source whose rows may name the same audio several times: their captions are merged, at the first of them.

    A subclass gives `rows`. Rows are read up to three times instead of being kept: 8 bytes of memory a row, and the
    captions of audio that is named more than once.
    """

    seen: int = 0
    _distinct: int | None = None
    _repeated: frozenset[int] = frozenset()

    def rows(self) -> Iterator[tuple[str, ClipItem | Rejection]]:
        """Yields rows with what tells their audio apart, which is empty for a row that is never merged."""
        raise NotImplementedError

    def count(self) -> int:
        if self._distinct is None:
            hashes = array("Q")
            alone = 0
            seen = 0
            for identity, item in self.rows():
                seen += item.seen
                if identity:
                    hashes.append(_hash(identity))
                else:
                    alone += 1
            distinct, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
            self._repeated = frozenset(distinct[counts > 1].tolist())
            self._distinct = alone + len(distinct)
            self.seen = seen
        return self._distinct

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.count()
        captions: dict[int, list[str]] = {}
        merged_rows: Counter[int] = Counter()
        if self._repeated:
            for identity, item in self.rows():
                if isinstance(item, ClipItem) and identity and (digest := _hash(identity)) in self._repeated:
                    captions.setdefault(digest, []).extend(item.captions)
                    merged_rows[digest] += item.seen
        for identity, item in self.rows():
            if not isinstance(item, ClipItem) or not identity or (digest := _hash(identity)) not in self._repeated:
                yield item
            elif digest in captions:
                merged = clean_captions(captions.pop(digest))
                yield replace(item, captions=merged, seen=merged_rows[digest])


class Manifest(RowSource):
    """A table with a column of audio paths (or of audio bytes, in Parquet) and one or more columns of captions."""

    kind = "manifest"

    def __init__(
        self,
        path: Path,
        audio_root: str | os.PathLike[str] | None = None,
        audio_column: str | None = None,
        captions: Sequence[str] | None = None,
    ) -> None:
        self.name = path.stem
        self._path = path
        self._root = path.resolve().parent if audio_root is None else Path(audio_root)
        self._audio_column = audio_column
        self._caption_columns = captions
        self._check_columns()

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": str(self._path.resolve()),
            "sha256": file_digest(self._path),
            "audio_root": str(self._root.resolve()),
            "audio_column": self._audio_column,
            "caption_columns": None if self._caption_columns is None else list(self._caption_columns),
        }

    def rows(self) -> Iterator[tuple[str, ClipItem | Rejection]]:
        for origin, row in read_rows(self._path):
            if isinstance(row, Rejection):
                yield "", row
                continue
            audio = self._audio_column or audio_column(row)
            if audio is None or audio not in row:
                yield "", Rejection(origin, "malformed_row", f"no audio column among {', '.join(row)}")
                continue
            columns = self._caption_columns or caption_columns(name for name in row if name != audio)
            captions = clean_captions(caption for column in columns for caption in captions_of(row.get(column)))
            metadata = {
                name: value
                for name, value in row.items()
                if name != audio and name not in columns and value is not None and not isinstance(value, bytes)
            }
            yield self._row(origin, row[audio], captions, metadata)

    def locate(self, file: str) -> Path:
        """The path of an audio file as the manifest writes it."""
        return Path(os.path.normpath(os.path.join(self._root, file)))

    def _row(
        self, origin: str, audio: Any, captions: list[str], metadata: dict[str, Any]
    ) -> tuple[str, ClipItem | Rejection]:
        # Parquet files of Hugging Face `datasets` hold {"bytes", "path"}.
        data = audio.get("bytes") if isinstance(audio, dict) else audio
        file = audio.get("path") if isinstance(audio, dict) else audio
        if isinstance(data, bytes):
            name = file if isinstance(file, str) and file else origin
            return "", ClipItem(os.path.splitext(name)[0], captions, BytesAudio(data), f"{origin} ({name})", metadata)
        if not isinstance(file, str) or file.strip().lower() in _MISSING:
            return "", Rejection(origin, "malformed_row", f"no audio path ({file!r})")
        if "\0" in file:
            return "", Rejection(origin, "malformed_row", "NUL byte in the audio path")
        path = self.locate(file)
        return str(path), ClipItem(os.path.splitext(file)[0], captions, FileAudio(path), file, metadata)

    def _check_columns(self) -> None:
        names: list[str] = next((list(row) for _, row in read_rows(self._path) if isinstance(row, dict)), [])
        if not names:
            return
        columns = f"its columns are {', '.join(names)}"
        if self._audio_column is not None and self._audio_column not in names:
            raise DatasetError(f"{self._path}: no column {self._audio_column!r}; {columns}")
        audio = self._audio_column or audio_column(names)
        if audio is None:
            raise DatasetError(f"{self._path}: no column is called like audio paths are; {columns}: give audio_column")
        if missing := [name for name in self._caption_columns or () if name not in names]:
            raise DatasetError(f"{self._path}: no column {', '.join(map(repr, missing))}; {columns}")
        if not (self._caption_columns or caption_columns(name for name in names if name != audio)):
            raise DatasetError(f"{self._path}: no column is called like captions are; {columns}: give caption_columns")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    """Yields `(origin, row)` of a manifest; a row that cannot be read is a Rejection.

    Raises:
        DatasetError: the file as a whole cannot be read.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".json": _read_json, ".parquet": _read_parquet}
    try:
        yield from readers.get(path.suffix.lower(), _read_json_lines)(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


def audio_column(names: Iterable[str]) -> str | None:
    """The column (or JSON field) that holds audio paths, by its name."""
    by_name = {str(name).strip().lower(): name for name in reversed(list(names))}
    return next((by_name[name] for name in _AUDIO_COLUMNS if name in by_name), None)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # surrogateescape: file names in another encoding stay what they are, and one bad row costs only itself.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            origin = f"{path.name}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield origin, Rejection(origin, "malformed_row", str(error))
                continue
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
            elif len(cells) != len(header):
                detail = f"{len(cells)} fields where the header has {len(header)}: {delimiter.join(cells)[:200]}"
                yield origin, Rejection(origin, "malformed_row", detail)
            elif any(_not_utf8(cell) and not os.path.exists(path.parent / cell) for cell in cells):
                yield origin, Rejection(origin, "malformed_row", "not UTF-8; convert the file")
            else:
                yield origin, dict(zip(header, cells, strict=True))


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); JSON lines are called .jsonl") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DatasetError(f'{path}: neither a list of objects nor {{"data": [...]}}')
    for position, row in enumerate(rows):
        yield _checked(f"{path.name}[{position}]", row)


def _read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            origin = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield origin, Rejection(origin, "malformed_row", f"not JSON ({error})")
            else:
                yield _checked(origin, row)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DatasetError(f"{path}: reading Parquet needs pyarrow; `pip install pyarrow`") from error
    try:
        number = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield f"{path.name}[{number}]", row
                    number += 1
    except pyarrow.ArrowException as error:
        raise DatasetError(f"{path}: not a readable Parquet file ({error})") from error


def _checked(origin: str, row: Any) -> tuple[str, dict[str, Any] | Rejection]:
    if isinstance(row, dict):
        return origin, row
    return origin, Rejection(origin, "malformed_row", f"{type(row).__name__} where an object was expected")


def _not_utf8(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _hash(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
