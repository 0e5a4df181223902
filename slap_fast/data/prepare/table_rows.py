"""Table reader: yields the rows of CSV, TSV, JSON, JSON lines, Parquet and Arrow files one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.csv_rows import check_names, read_csv
from slap_fast.data.prepare.source import Rejection
from slap_fast.errors import MissingExtraError

TABLE_EXTENSIONS = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow"})
SPLIT_WORDS = frozenset(
    {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "development"}
    | {"eval", "evaluation"}
)

_PARQUET_ROWS = 16  # a row may hold a whole audio file
_ARROW_FILE, _ARROW_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
_PARQUET_BUFFER = 1 << 20  # bytes of a column to read at once; a row group may have gigabytes


def read_rows(
    path: Path, is_file_name: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    """Yields `(origin, row)` of a table; a row that cannot be read is a Rejection.

    Args:
        path: a file with one of TABLE_EXTENSIONS.
        is_file_name: see `read_csv`.

    Raises:
        DatasetError: the file as a whole cannot be read.
    """
    extension = path.suffix.lower()
    try:
        if extension in (".csv", ".tsv"):
            yield from read_csv(path, is_file_name)
        else:
            readers = {".json": _read_json, ".parquet": _read_parquet, ".arrow": _read_arrow}
            yield from readers.get(extension, _read_json_lines)(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or _one_line(error)})") from error
    except UnicodeError as error:
        raise DatasetError(f"{path}: cannot be read as text ({_one_line(error)}); convert the file to UTF-8") from error


def read_tables(
    paths: Sequence[Path], is_file_name: Callable[[Path, str], bool] | None = None
) -> Iterator[tuple[Path, str, dict[str, Any] | Rejection]]:
    """Yields `(table, origin, row)` of several tables; origins are relative to their common folder."""
    common = os.path.commonpath([path.absolute().parent for path in paths])
    for path in paths:
        inside = os.path.relpath(path.absolute().parent, common)
        for origin, row in read_rows(path, None if is_file_name is None else partial(is_file_name, path)):
            origin = os.path.normpath(os.path.join(inside, origin))
            yield path, origin, row if isinstance(row, dict) else replace(row, origin=origin)


def first_row(path: Path) -> dict[str, Any]:
    """The first readable row, or an empty one."""
    return next((row for _, row in read_rows(path) if isinstance(row, dict)), {})


def column_names(path: Path) -> list[str]:
    """The columns of a table; empty if it has no readable row."""
    if path.suffix.lower() == ".parquet":
        # From the schema: the first row may contain audio.
        with _parquet_file(path) as file:
            return list(file.schema_arrow.names) if file.metadata.num_rows else []
    if path.suffix.lower() == ".arrow":
        with _arrow_batches(path) as (schema, batches):
            return list(schema.names) if any(batch.num_rows for batch in batches) else []
    return list(first_row(path))


def class_names(path: Path) -> dict[str, list[str]]:
    """The names of ClassLabel columns, whose cells are numbers; `datasets` stores them in the schema."""
    if path.suffix.lower() == ".parquet":
        with _parquet_file(path) as file:
            return class_names_of(file.schema_arrow.metadata)
    if path.suffix.lower() == ".arrow":
        with _arrow_batches(path) as (schema, _):
            return class_names_of(schema.metadata)
    return {}


def class_names_of(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """As `class_names`, of the metadata of an Arrow schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        columns = {
            name: feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
            for name, feature in features.items()
        }
        return {
            name: list(feature["names"])
            for name, feature in columns.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def require_columns(tables: Sequence[Path], columns: frozenset[str], layout: str) -> None:
    """Raises DatasetError if a table with rows lacks one of the columns of its layout."""
    for table in tables:
        names = column_names(table)
        if names and (missing := columns.difference(names)):
            raise DatasetError(
                f"{table}: {layout} needs the columns {', '.join(sorted(missing))}; this has {', '.join(names)}"
            )


class RepeatedKey(dict[str, Any]):
    """A JSON object in which a key appears twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        super().__init__(pairs)
        self.key = next(name for name in names if names.count(name) > 1)


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that returns RepeatedKey if a key appears twice (json would drop the first value)."""
    value = dict(pairs)
    return value if len(value) == len(pairs) else RepeatedKey(pairs)


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); name a file of JSON lines .jsonl") from error
    if isinstance(value, RepeatedKey):
        raise DatasetError(f"{path}: the key {value.key!r} appears twice")
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
                row = json.loads(line, object_pairs_hook=json_object)
            except (ValueError, RecursionError) as error:
                yield origin, Rejection(origin, "malformed_row", f"not JSON ({error})")
            else:
                yield _checked(origin, row)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            for position in range(batch.num_rows):
                yield f"{path.name}[{number}]", batch.slice(position, 1).to_pylist()[0]
                number += 1


def _read_arrow(path: Path) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    number = 0
    with _arrow_batches(path) as (_, batches):
        for batch in batches:
            for position in range(batch.num_rows):
                yield f"{path.name}[{number}]", batch.slice(position, 1).to_pylist()[0]
                number += 1


@contextmanager
def _arrow_batches(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and record batches of an Arrow file: a stream (as `datasets` writes) or the IPC file format.

    The file is mapped into memory, so that a batch with audio is not copied.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading Arrow needs pyarrow; run `pip install pyarrow` (or slap-fast[datasets])"
        ) from error
    try:
        with pyarrow.memory_map(str(path)) as file:
            if bytes(file.read(len(_ARROW_FILE))) == _ARROW_FILE:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                # A stream that was cut off between two batches reads as a shorter one.
                file.seek(max(0, file.size() - len(_ARROW_END)))
                if bytes(file.read(len(_ARROW_END))) != _ARROW_END:
                    raise pyarrow.ArrowInvalid("it has no end marker, so it is truncated; copy or download it again")
                file.seek(0)
                reader = pyarrow.ipc.open_stream(file)
                batches = iter(reader)
            check_names(path, reader.schema.names)
            yield reader.schema, batches
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable Arrow file ({_one_line(error)})") from error


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DatasetError(f"{path}: reading Parquet needs pyarrow; `pip install pyarrow`") from error
    try:
        with ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            check_names(path, file.schema_arrow.names)
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable Parquet file ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _checked(origin: str, row: Any) -> tuple[str, dict[str, Any] | Rejection]:
    if isinstance(row, RepeatedKey):
        return origin, Rejection(origin, "malformed_row", f"the key {row.key!r} appears twice")
    if isinstance(row, dict):
        return origin, row
    return origin, Rejection(origin, "malformed_row", f"{type(row).__name__} instead of an object")
