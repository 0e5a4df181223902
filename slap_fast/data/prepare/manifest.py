"""Manifest: a table of captioned audio, with audio paths or audio bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import find_caption_columns, table_captions
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.file_search import find_file
from slap_fast.data.prepare.label_captions import CAPTION_TEMPLATE, captions_of_labels, find_label_column
from slap_fast.data.prepare.segments import SegmentError, segment_of, start_of
from slap_fast.data.prepare.source import ClipItem, Rejection, SegmentAudio
from slap_fast.data.prepare.table_audio import audio_of_cell, default_audio_root, find_audio_column
from slap_fast.data.prepare.table_rows import class_names, column_names, read_tables
from slap_fast.data.prepare.table_source import Identity, TableSource, describe_tables, name_of_tables


class Manifest(TableSource):
    """Tables with a column of audio paths (or of audio bytes, in Parquet) and one or more caption columns.

    Rows belong to one clip if they have the same path, or for audio inside the table the same path (if any) and bytes,
    and with a column `offset` the same segment.

    Args:
        path: the table, or several with the same columns, such as Parquet shards.
        audio_root: folder that audio paths are relative to; that of each table if None.
        audio_column: found by name if None.
        captions: the caption columns; found by name if None.
        template: makes captions of the class names, with one `{}`, instead of reading caption columns.
    """

    kind = "manifest"

    def __init__(
        self,
        path: Path | Sequence[Path],
        audio_root: str | os.PathLike[str] | None = None,
        audio_column: str | None = None,
        captions: Sequence[str] | None = None,
        template: str | None = None,
    ) -> None:
        self.tables = [path] if isinstance(path, Path) else list(path)
        self.name = name_of_tables(self.tables)
        self._given_root = None if audio_root is None else Path(audio_root)
        self._audio_column = audio_column
        self._caption_columns = captions
        self._template = template
        self._classes: dict[str, list[str]] = {}
        for table in self.tables:
            self._check_columns(table)

    def describe(self) -> dict[str, Any]:
        roots = [str(self._root(path).resolve()) for path in self.tables]
        return {
            "kind": self.kind,
            **describe_tables(self.tables),
            "audio_root": roots[0] if len(set(roots)) == 1 else roots,
            "audio_column": self._audio_column,
            "caption_columns": None if self._caption_columns is None else list(self._caption_columns),
            **({} if self._template is None else {"caption": self._template}),
        }

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        roots = {table: self._root(table) for table in self.tables}
        starts: dict[Identity, Any] = {}
        is_file_name = lambda table, cell: os.path.exists(self.locate(cell, roots[table]))  # noqa: E731
        for table, origin, row in read_tables(self.tables, is_file_name):
            if isinstance(row, Rejection):
                yield (), row
                continue
            identity, item = self._row(origin, row, roots[table])
            if identity:
                _check_start(table, identity, row, starts)
            yield identity, item

    def locate(self, file: str, root: Path) -> Path:
        """The path of an audio file, given as in the manifest."""
        return find_file(Path(os.path.normpath(os.path.join(root, file))))

    def captions_of_row(self, row: dict[str, Any], columns: Sequence[str]) -> list[str]:
        return table_captions(row.get(column) for column in columns)

    def _row(self, origin: str, row: dict[str, Any], root: Path) -> tuple[Identity, ClipItem | Rejection]:
        audio = self._audio_column or find_audio_column(row)
        if audio is None or audio not in row:
            return (), Rejection(origin, "malformed_row", f"no audio column among {', '.join(row)}")
        columns = self._caption_columns or find_caption_columns(name for name in row if name != audio)
        metadata = {
            name: value
            for name, value in row.items()
            if name != audio and name not in columns and value is not None and not isinstance(value, bytes)
        }
        found = audio_of_cell(origin, row[audio], lambda file: self.locate(file, root))
        if isinstance(found, Rejection):
            return (), found
        try:
            segment = segment_of(metadata)
        except SegmentError as error:
            return (), Rejection(origin, "malformed_row", str(error))
        captions = self.captions_of_row(row, columns)
        if self._template is not None:
            label = find_label_column(row) or ""
            try:
                captions, labels = captions_of_labels(self._template, label, row.get(label), self._classes.get(label))
            except DatasetError as error:
                return (), Rejection(origin, "malformed_row", str(error))
            metadata |= labels
        item = ClipItem(found.name, captions, found.audio, found.origin, metadata)
        if segment is None:
            return found.identity, item
        cut = replace(
            item,
            name=f"{item.name}_{segment}",
            audio=SegmentAudio(found.audio, segment),
            origin=f"{item.origin} {segment}",
        )
        return (*found.identity, str(segment)), cut

    def _root(self, table: Path) -> Path:
        return default_audio_root(table) if self._given_root is None else self._given_root

    def _check_columns(self, table: Path) -> None:
        names = column_names(table)
        if not names:
            return
        columns = f"its columns are {', '.join(names)}"
        if self._audio_column is not None and self._audio_column not in names:
            raise DatasetError(f"{table}: no column {self._audio_column!r}; {columns}")
        audio = self._audio_column or find_audio_column(names)
        if audio is None:
            raise DatasetError(
                f"{table}: no column has a known name for audio paths; {columns}: give it with --audio-column"
            )
        if self._template is not None:
            if find_label_column(names) is None:
                raise DatasetError(f"{table}: no column of class names for --caption-template; {columns}")
            self._classes = class_names(table)
            return
        if missing := [name for name in self._caption_columns or () if name not in names]:
            raise DatasetError(f"{table}: no column {', '.join(map(repr, missing))}; {columns}")
        if not (self._caption_columns or find_caption_columns(name for name in names if name != audio)):
            label = find_label_column(names)
            how = f", or --caption-template {CAPTION_TEMPLATE!r} for the classes in {label!r}" if label else ""
            raise DatasetError(
                f"{table}: no column has a known name for captions; {columns}: give it with --caption-columns{how}"
            )


def _check_start(table: Path, identity: Identity, row: dict[str, Any], starts: dict[Identity, Any]) -> None:
    """Raises if rows of one file have different start times: are they segments of the file, or the whole file?"""
    start = start_of(row)
    if start is None or isinstance(identity[-1], bytes):
        return
    name, value = start
    if starts.setdefault(identity, value) != value:
        raise DatasetError(
            f"{table}: {identity[0]!s} has rows with {name} {starts[identity]} and {value}; to cut out segments, give "
            f"the columns offset and duration in seconds; if the captions are of the whole file, remove {name}"
        )
