"""Labeled sources: classification and tagging datasets, captioned with their class names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled import LabeledFile, LabeledSet, LabelError, open_labeled
from slap_fast.data.labeled.tables import LABELED_LAYOUTS, labeled_rows
from slap_fast.data.labeled.tagging import AUDIOSET_CLASSES, FSD50K_LABELS, is_audioset
from slap_fast.data.prepare.label_captions import CAPTION_TEMPLATE, TEMPLATE_SOURCE, caption_of
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_audio import CellAudio, audio_of_cell
from slap_fast.data.prepare.table_rows import require_columns
from slap_fast.data.prepare.table_source import Identity, TableSource, describe_tables

SEGMENTS = "_segments.csv"
_FSD50K_DEV = ("train", "val")
_OTHER_PARTS = ("no_table", "no_audio_folder", "no_audio")


class LabeledTable(TableSource):
    """ESC-50 or UrbanSound8K by their tables; the caption of a clip is its class name in a template.

    If the tables contain audio, as Parquet files from the Hugging Face hub do, that audio is used.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        layout: str,
        audio_root: str | os.PathLike[str] | None = None,
        template: str = CAPTION_TEMPLATE,
    ) -> None:
        self.name = layout
        self._paths = list(paths)
        self._root = None if audio_root is None else Path(audio_root)
        self._template = template
        self._layout = next(known for known in LABELED_LAYOUTS if known.name == layout)
        require_columns(self._paths, self._layout.columns, layout)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self._layout.name,
            **describe_tables(self._paths),
            "audio_root": None if self._root is None else str(self._root.resolve()),
            "caption": self._template,
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
            metadata = {name: value for name, value in row.items() if name != "audio"} | TEMPLATE_SOURCE
            audio = own.audio if isinstance(own, CellAudio) else FileAudio(path)
            caption = caption_of(self._template, [label])
            identity = own.identity if isinstance(own, CellAudio) else (str(path),)
            yield identity, ClipItem(os.path.splitext(file)[0], [caption], audio, f"{origin} {file}", metadata)


class LabeledSource:
    """A labeled set (FSD50K, AudioSet, class folders, ...); the caption of a clip is its class names in a template.

    Names are written in lower case. A clip without a class is left out.

    Args:
        path: as in `open_labeled`.
        split: of the set; None: all, which is an error if there are several.
        template: with one `{}`.

    Raises:
        DatasetError: the set cannot be read, or the split is missing or unknown.
    """

    def __init__(self, path: Path, split: str | None = None, template: str = CAPTION_TEMPLATE) -> None:
        try:
            labeled = open_labeled(path)
        except (LabelError, FileNotFoundError) as error:
            raise DatasetError(str(error)) from error
        self._path = path
        self._split = split
        self._template = template
        self._left_out = list(labeled.left_out)
        splits = labeled.splits()
        is_dev = labeled.name == "fsd50k" and split == "dev" and "train" in splits
        if split is None and len(splits) > 1:
            shown = ", ".join([*splits, *(["dev (train and val)"] if labeled.name == "fsd50k" else [])])
            raise DatasetError(f"{path}: it has the splits {shown}; choose one with --split")
        if split is not None and not is_dev and split not in splits:
            absent = [f"{item.origin}: {item.detail}" for item in labeled.left_out if item.reason in _OTHER_PARTS]
            known = "; ".join([f"its splits: {', '.join(splits) or 'none'}", *absent])
            raise DatasetError(f"{path}: it has no split {split!r}; {known}")
        wanted = _FSD50K_DEV if is_dev else (split,)
        self._files = [file for file in labeled.files if split is None or file.split in wanted]
        if split is not None:
            self._left_out = [item for item in self._left_out if item.reason not in _OTHER_PARTS]
        self._set = labeled
        self.name = f"{labeled.name}-{split}" if split else labeled.name
        self.seen = len(self._files) + sum(item.seen for item in self._left_out)

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.path}\0{self._names(file)}\0".encode("utf-8", "surrogateescape"))
        return {
            "kind": "labeled",
            "path": str(self._path.resolve()),
            "files": digest.hexdigest(),
            "split": self._split,
            "caption": self._template,
        }

    def count(self) -> int:
        return len(self._files) + len(self._left_out)

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        root = self._path if self._path.is_dir() else self._path.parent
        yield from self._left_out
        for file in self._files:
            origin = os.path.relpath(file.path, root) if file.read is None else str(file.path)
            names = self._names(file)
            if not names:
                yield Rejection(origin, "no_captions", "the clip has no class, so there is no caption")
                continue
            try:
                audio = FileAudio(file.path) if file.read is None else BytesAudio(file.read())
            except DatasetError as error:
                yield Rejection(origin, "malformed_row", str(error))
                continue
            name = os.path.splitext(origin)[0] if file.read is None else os.path.relpath(origin, root)
            caption = caption_of(self._template, [one.lower() for one in names])
            yield ClipItem(name, [caption], audio, origin, _metadata(self._set, file, names))

    def _names(self, file: LabeledFile) -> list[str]:
        return [self._set.classes[label] for label in file.labels]


def folder_of_table(table: Path) -> tuple[Path, str | None]:
    """The folder and the split of a table of FSD50K (`dev.csv`, `eval.csv`) or AudioSet (`eval_segments.csv`, ...).

    The split is None if it is another table.

    Raises:
        DatasetError: a table of AudioSet without the table of its classes.
    """
    folder = table.absolute().parent
    if table.name.endswith(SEGMENTS) and _is_segments(table):
        if not is_audioset(folder):
            raise DatasetError(f"{table}: {AUDIOSET_CLASSES}, with the names of the classes, has to be beside it")
        return folder, table.name.removesuffix(SEGMENTS)
    if folder.name == FSD50K_LABELS and table.name in ("dev.csv", "eval.csv"):
        return folder.parent, table.stem
    return folder, None


def _is_segments(table: Path) -> bool:
    with open(table, "rb") as file:
        return file.read(1) == b"#"


def _metadata(labeled: LabeledSet, file: LabeledFile, names: list[str]) -> dict[str, Any]:
    labels: dict[str, Any] = {"labels": names} if labeled.multi_label else {"label": names[0]}
    given = {"fold": file.fold, "split": file.split, "group": file.group}
    return labels | {name: value for name, value in given.items() if value is not None} | TEMPLATE_SOURCE
