"""Labeled audio inside other files: prepared datasets with a class in their metadata, and Parquet tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import is_missing
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled.labeled_set import LabeledSet, LabelError, NamedFile, in_words, numbered
from slap_fast.data.labeled.tables import (
    MULTI_LABEL_COLUMN,
    class_column,
    label_separator,
    labeled_layout,
    publisher_split,
    split_labels,
)
from slap_fast.data.prepare.table_audio import find_audio_column
from slap_fast.data.prepare.table_rows import SPLIT_WORDS, class_names_of


def prepared_dataset(folder: Path) -> LabeledSet:
    """A dataset that `slap-fast prepare` wrote, with a class in the metadata of each clip (`category`, `labels`, ...).

    Raises:
        LabelError: a clip has no class.
        DatasetError: the dataset cannot be read.
    """
    index = ClipIndex.open(folder)
    rows = [(f"{folder}: {index.key(clip)}", _own_metadata(index.read_metadata(clip))) for clip in range(len(index))]
    reads = [partial(index.read_audio, clip) for clip in range(len(index))]
    hint = "prepare it from a labeled source such as ESC-50, or from a table with a column of classes"
    return _labeled(folder, _layout_name(rows, folder.resolve().name), rows, reads, hint)


def parquet_tables(source: Path, tables: Sequence[Path]) -> LabeledSet:
    """Parquet tables with the audio inside, as `datasets` writes them: columns `audio` and `label`, for example.

    Class numbers become the names in the table's ClassLabel. Shards are named `{split}-00000-of-00002.parquet`.

    Raises:
        LabelError: no audio inside, or a row without audio or class.
        DatasetError: a table cannot be read.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    reads: list[Callable[[], bytes]] = []
    for table in tables:
        reader = _ParquetAudio(table)
        split = next(
            (part for part in (table.stem.split("-")[0], table.parent.name) if part.lower() in SPLIT_WORDS), None
        )
        for number, row in enumerate(reader.rows()):
            rows.append((f"{table}[{number}]", {"split": split} | row))
            reads.append(partial(reader.read, number))
    return _labeled(source, _layout_name(rows, source.stem), rows, reads, "give a table with a column of classes")


def _own_metadata(stored: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a clip that its source had, which `prepare` stores under `metadata`."""
    own = stored.get("metadata")
    return own if isinstance(own, dict) else stored


def _layout_name(rows: Sequence[tuple[str, dict[str, Any]]], otherwise: str) -> str:
    layout = labeled_layout(rows[0][1]) if rows else None
    return layout.name if layout else otherwise


def _labeled(
    source: Path,
    name: str,
    rows: Sequence[tuple[str, dict[str, Any]]],
    reads: Sequence[Callable[[], bytes]],
    hint: str,
) -> LabeledSet:
    if not rows:
        raise LabelError(f"{source}: it has no clip")
    layout = labeled_layout(rows[0][1])
    column = layout.class_column if layout else class_column(rows[0][1])
    if column is None:
        raise LabelError(f"{source}: its clips have no class ({', '.join(map(str, rows[0][1]))}); {hint}")
    multi_label = column == MULTI_LABEL_COLUMN
    separator = label_separator(row.get(column) for _, row in rows)
    files = []
    for (origin, row), read in zip(rows, reads, strict=True):
        cell = row.get(column)
        if not multi_label and (cell is None or is_missing(str(cell))):
            raise LabelError(f"{origin}: no {column}")
        labels = split_labels(cell, separator) if multi_label else (in_words(str(cell)),)
        files.append(NamedFile(Path(origin), labels, read=read, **publisher_split(origin, row)))
    return numbered(source, name, files, multi_label=multi_label)


class _ParquetAudio:
    """Rows of a Parquet table without their audio, and the audio of one row; keeps one row group in memory."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise DatasetError(f"{path}: reading Parquet needs pyarrow; `pip install pyarrow`") from error
        self._path = path
        self._errors = (pyarrow.ArrowException, OSError)
        try:
            self._file = ParquetFile(path, pre_buffer=False)
        except self._errors as error:
            raise DatasetError(f"{path}: not a readable Parquet file ({error})") from error
        schema = self._file.schema_arrow
        audio = find_audio_column(schema.names)
        kind = None if audio is None else schema.field(audio).type
        if kind is None or not (pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind)):
            raise LabelError(
                f"{path}: no column holds audio ({', '.join(schema.names)}); give a table with audio inside"
            )
        self._audio = str(audio)
        self._names = class_names_of(schema.metadata)
        self._lock = threading.Lock()
        self._group: tuple[int, list[Any]] = (-1, [])
        counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [sum(counts[:group]) for group in range(len(counts) + 1)]

    def rows(self) -> list[dict[str, Any]]:
        columns = [name for name in self._file.schema_arrow.names if name != self._audio]
        try:
            rows = self._file.read(columns=columns).to_pylist()
        except self._errors as error:
            raise DatasetError(f"{self._path}: not a readable Parquet file ({error})") from error
        for number, row in enumerate(rows):
            for name, classes in self._names.items():
                row[name] = self._named(number, name, row.get(name), classes)
        return rows

    def _named(self, number: int, column: str, cell: Any, classes: list[str]) -> Any:
        if isinstance(cell, list):
            return [self._named(number, column, one, classes) for one in cell]
        if not isinstance(cell, int):
            return cell
        if not 0 <= cell < len(classes):
            raise LabelError(f"{self._path}[{number}]: {column} is {cell}; there are {len(classes)} classes")
        return classes[cell]

    def read(self, number: int) -> bytes:
        group = next(at for at, start in enumerate(self._starts[1:]) if number < start)
        with self._lock:
            if self._group[0] != group:
                try:
                    column = self._file.read_row_group(group, columns=[self._audio]).column(0)
                except self._errors as error:
                    raise DatasetError(f"{self._path}: row group {group} cannot be read ({error})") from error
                self._group = (group, column)
            cell = self._group[1][number - self._starts[group]].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise DatasetError(f"{self._path}[{number}]: {self._audio} has no bytes")
        return data
