"""Tables of audio files and class labels, among them those of ESC-50 and UrbanSound8K as published."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from slap_fast.data.format.captions import is_missing
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled.labeled_set import LabelError, NamedFile, in_words
from slap_fast.data.prepare.source import Rejection
from slap_fast.data.prepare.table_audio import default_audio_root
from slap_fast.data.prepare.table_rows import first_row, read_tables

_FILE_COLUMNS = ("file", "filename", "file_name", "path", "audio", "fname")
CLASS_COLUMNS = ("class", "label", "category", "class_name")
MULTI_LABEL_COLUMN = "labels"
_GROUP_COLUMNS = ("group", "src_file", "fsID")  # the latter two are of ESC-50 and UrbanSound8K


class PublisherSplit(TypedDict):
    """What a publisher gives for splitting clips; see LabeledFile."""

    fold: int | None
    split: str | None
    group: str | None


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
    label_column = layout.class_column if layout else class_column(first)
    if first and (file_column is None or label_column is None):
        raise DatasetError(
            f"{table}: its columns are {', '.join(first)}; it needs one of {', '.join(_FILE_COLUMNS)} "
            f"and one of {', '.join((*CLASS_COLUMNS, MULTI_LABEL_COLUMN))}"
        )
    root = default_audio_root(table) if audio_root is None else audio_root
    roots = [root.parent / "audio", root / "audio", root] if layout else [root]
    for _, origin, row in read_tables(tables, lambda _, cell: os.path.exists(root / cell)):
        if isinstance(row, Rejection):
            yield origin, row
            continue
        file, label = row.get(file_column or ""), row.get(label_column or "")
        if isinstance(file, (dict, bytes)):
            yield origin, Rejection(origin, "malformed_row", "its audio is inside the table; write it to files")
            continue
        several = label_column == MULTI_LABEL_COLUMN  # where a clip may have no class
        unusable = not isinstance(label, (str, int)) or is_missing(str(label))
        if not isinstance(file, str) or is_missing(file) or (unusable and not several):
            yield origin, Rejection(origin, "malformed_row", f"no {file_column} or no {label_column}")
            continue
        names = [file, os.path.join(f"fold{row['fold']}", file)] if layout else [file]
        candidates = [folder / name for folder in roots for name in names]
        path = next((candidate for candidate in candidates if os.path.isfile(candidate)), candidates[0])
        yield origin, (path, in_words(str(label)), row)


def table_files(table: Path) -> tuple[str, list[NamedFile], bool]:
    """The layout's name (or that of the file), the clips of a table, and whether they may have several labels.

    A column `labels` holds any number of classes, as a list or separated by `;`, or by `,` if no cell has a `;`. The
    columns `fold`, `split` and `group` (in ESC-50 and UrbanSound8K: the recording on Freesound) are read if there.

    Raises:
        LabelError: a row cannot be used; the message names it.
        DatasetError: the table cannot be read, or has no file column or no class column.
    """
    layout = labeled_layout(first_row(table))
    found: list[tuple[str, Path, Any, dict[str, Any]]] = []
    for origin, row in labeled_rows([table]):
        if isinstance(row, Rejection):
            raise LabelError(f"{table.parent / origin}: {row.detail}")
        found.append((f"{table.parent / origin}", *row))
    multi_label = bool(found) and class_column(found[0][3]) == MULTI_LABEL_COLUMN
    separator = label_separator(row[3].get(MULTI_LABEL_COLUMN) for row in found) if multi_label else None
    files = [
        NamedFile(
            path,
            split_labels(row[MULTI_LABEL_COLUMN], separator) if separator else (label,),
            **publisher_split(origin, row),
        )
        for origin, path, label, row in found
    ]
    return (layout.name if layout else table.stem), files, multi_label


def class_column(names: Iterable[str]) -> str | None:
    """The column (or JSON field) of classes, by its name; MULTI_LABEL_COLUMN only if there is no other."""
    names = list(names)
    return next((name for name in (*CLASS_COLUMNS, MULTI_LABEL_COLUMN) if name in names), None)


def label_separator(cells: Iterable[Any]) -> str:
    """The separator of class names in cells of text."""
    return ";" if any(isinstance(cell, str) and ";" in cell for cell in cells) else ","


def split_labels(cell: Any, separator: str) -> tuple[str, ...]:
    """Class names in plain words of a cell with several: a list, a list as JSON, or text with a separator."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            cell = json.loads(cell)
    names = cell if isinstance(cell, list | tuple) else str("" if cell is None else cell).split(separator)
    return tuple(dict.fromkeys(word for name in names if (word := in_words(str(name))) and not is_missing(word)))


def publisher_split(origin: str, row: Mapping[str, Any]) -> PublisherSplit:
    """Fold, split and group of a row; LabelError for a fold that is not a whole number."""
    fold = row.get("fold")
    if fold is not None and not is_missing(str(fold)):
        try:
            fold = int(fold)
        except (TypeError, ValueError) as error:
            raise LabelError(f"{origin}: the fold is {str(fold)[:40]!r}; it must be a whole number") from error
    else:
        fold = None
    split = row.get("split")
    group = next((row[name] for name in _GROUP_COLUMNS if row.get(name) not in (None, "")), None)
    return {
        "fold": fold,
        "split": split if isinstance(split, str) and not is_missing(split) else None,
        "group": None if group is None else str(group),
    }
