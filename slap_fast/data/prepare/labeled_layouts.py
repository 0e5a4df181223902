"""Labeled layouts: tables of audio files and class labels, such as ESC-50 and UrbanSound8K as published."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import is_missing
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.source import ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_audio import CellAudio, audio_of_cell, default_audio_root
from slap_fast.data.prepare.table_rows import first_row, read_tables, require_columns
from slap_fast.data.prepare.table_source import Identity, TableSource, describe_tables

CAPTION_TEMPLATE = "the sound of {}"
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "audio", "fname")
_CLASS_COLUMNS = ("class", "label", "category", "class_name")


@dataclass(frozen=True)
class LabeledLayout:
    """The layout of a published classification dataset: its table is in a folder beside `audio/`."""

    name: str
    table: str
    file_column: str
    class_column: str
    columns: frozenset[str]


ESC50 = LabeledLayout(
    "esc50", "meta/esc50.csv", "filename", "category", frozenset({"filename", "fold", "target", "category"})
)
URBANSOUND8K = LabeledLayout(
    "urbansound8k",
    "metadata/UrbanSound8K.csv",
    "slice_file_name",
    "class",
    frozenset({"slice_file_name", "fold", "classID", "class"}),
)
LABELED_LAYOUTS = (ESC50, URBANSOUND8K)


def labeled_layout(row: dict[str, Any]) -> LabeledLayout | None:
    """The layout of a row, by its columns."""
    return next((layout for layout in LABELED_LAYOUTS if row.keys() >= layout.columns), None)


def published_table(folder: Path) -> Path | None:
    """The table of a published classification dataset, given its folder or its `audio/` folder."""
    for root in (folder, folder.absolute().parent):
        for layout in LABELED_LAYOUTS:
            if (root / layout.table).is_file() and (root is folder or folder.absolute().name == "audio"):
                return root / layout.table
    return None


def labeled_rows(
    tables: Sequence[Path], audio_root: Path | None = None
) -> Iterator[tuple[str, tuple[Path, str, dict[str, Any]] | Rejection]]:
    """Yields `(origin, (audio file, class name in plain words, row))` of tables, or a Rejection for a bad row.

    Audio paths are relative to `audio_root` or to the folder of the first table; files of a published dataset are also
    searched in its `audio/` and in the folder of their fold.

    Raises:
        DatasetError: the table cannot be read, or has no file column or no class column.
    """
    table = tables[0]
    first = first_row(table)
    layout = labeled_layout(first)
    file_column = layout.file_column if layout else next((name for name in _FILE_COLUMNS if name in first), None)
    class_column = layout.class_column if layout else next((name for name in _CLASS_COLUMNS if name in first), None)
    if first and (file_column is None or class_column is None):
        raise DatasetError(
            f"{table}: its columns are {', '.join(first)}; it needs one of {', '.join(_FILE_COLUMNS)} "
            f"and one of {', '.join(_CLASS_COLUMNS)}"
        )
    root = default_audio_root(table) if audio_root is None else audio_root
    roots = [root.parent / "audio", root / "audio", root] if layout else [root]
    for _, origin, row in read_tables(tables, lambda _, cell: os.path.exists(root / cell)):
        if isinstance(row, Rejection):
            yield origin, row
            continue
        file, label = row.get(file_column or ""), row.get(class_column or "")
        if isinstance(file, (dict, bytes)):
            yield origin, Rejection(origin, "malformed_row", "its audio is inside the table; write it to files")
            continue
        if not isinstance(file, str) or not isinstance(label, (str, int)) or is_missing(file) or is_missing(str(label)):
            yield origin, Rejection(origin, "malformed_row", f"no {file_column} or no {class_column}")
            continue
        names = [file, os.path.join(f"fold{row['fold']}", file)] if layout else [file]
        candidates = [folder / name for folder in roots for name in names]
        path = next((candidate for candidate in candidates if os.path.isfile(candidate)), candidates[0])
        yield origin, (path, str(label).replace("_", " ").strip(), row)


class LabeledSource(TableSource):
    """A classification dataset; the caption of a clip is its class name in CAPTION_TEMPLATE.

    If the tables contain audio, as Parquet files from the Hugging Face hub do, that audio is used.
    """

    def __init__(self, paths: Sequence[Path], layout: str, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = layout
        self._paths = list(paths)
        self._root = None if audio_root is None else Path(audio_root)
        self._layout = next(known for known in LABELED_LAYOUTS if known.name == layout)
        require_columns(self._paths, self._layout.columns, layout)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self._layout.name,
            **describe_tables(self._paths),
            "audio_root": None if self._root is None else str(self._root.resolve()),
            "caption": CAPTION_TEMPLATE,
        }

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        for origin, found in labeled_rows(self._paths, self._root):
            if isinstance(found, Rejection):
                yield (), found
                continue
            path, label, row = found
            file = str(row[self._layout.file_column])
            cell = row.get("audio")
            own = audio_of_cell(origin, cell, path.parent.joinpath) if isinstance(cell, (dict, bytes)) else None
            metadata = {name: value for name, value in row.items() if name != "audio"}
            audio = own.audio if isinstance(own, CellAudio) else FileAudio(path)
            caption = CAPTION_TEMPLATE.replace("{}", label)
            identity = own.identity if isinstance(own, CellAudio) else (str(path),)
            yield identity, ClipItem(os.path.splitext(file)[0], [caption], audio, f"{origin} {file}", metadata)
