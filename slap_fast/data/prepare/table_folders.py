"""Folders of tables: Parquet shards, and Hugging Face's AudioFolder with its `metadata.csv`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.folder_source import FolderSource
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import ClipItem, FileAudio, Rejection, Source
from slap_fast.data.prepare.table_rows import SPLIT_WORDS, TABLE_EXTENSIONS
from slap_fast.errors import one_line

METADATA_NAMES = tuple(f"metadata{extension}" for extension in (".csv", ".jsonl", ".parquet", ".tsv", ".json"))
_SAVED_SPLITS, _SAVED_STATE = "dataset_dict.json", "state.json"
_SHARD = re.compile(
    r"(?P<split>.+?)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<digest>-[0-9a-f]+)?\.(?P<kind>parquet|arrow)"
)
_CACHED = re.compile(r"cache-[0-9a-f]+\.arrow")  # of `map` and the like, beside the dataset itself


class ChainedSource:
    """A source followed by a second one for the other files of its folder."""

    def __init__(self, source: Source, others: Source) -> None:
        self.name = source.name
        self.seen = 0
        self._source = source
        self._others = others

    def describe(self) -> dict[str, Any]:
        return self._source.describe() | {"beside": self._others.describe()}

    def count(self) -> int | None:
        counts = self._source.count(), self._others.count()
        return None if counts[0] is None or counts[1] is None else counts[0] + counts[1]

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = 0
        for part in (self._source, self._others):
            yield from part
            self.seen += part.seen


class RejectedFiles:
    """A source of rejections: the files of a folder that are not read."""

    def __init__(self, folder: Path, items: Sequence[Rejection]) -> None:
        self.name = folder.resolve().name
        self.seen = sum(item.seen for item in items)
        self._items = list(items)

    def describe(self) -> dict[str, Any]:
        return {"kind": "left out", "items": [item.origin for item in self._items]}

    def count(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Rejection]:
        return iter(self._items)


class UnlistedAudio:
    """The audio of a folder that its metadata table does not list, with captions from sidecars if there are any."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.name = folder.resolve().name
        self.seen = 0
        self._root = folder
        self._folder = FolderSource(folder)
        self._manifest = manifest
        self._tables = sorted(os.path.relpath(table, folder) for table in manifest.tables)

    def describe(self) -> dict[str, Any]:
        return self._folder.describe()

    def count(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        listed = {
            os.path.abspath(item.audio.path)
            for _, item in self._manifest.rows()
            if isinstance(item, ClipItem) and isinstance(item.audio, FileAudio)
        }
        tables = ", ".join(self._tables)
        self.seen = 0
        for item in self._folder:
            if item.origin in self._tables:
                continue
            if os.path.abspath(self._root / item.origin) in listed:
                if item.seen == 1:
                    continue
                detail = f"the captions of {item.origin} come from {tables}"
                item = Rejection(f"{os.path.splitext(item.origin)[0]}.*", "unused_sidecar", detail, item.seen - 1)
            elif isinstance(item, ClipItem) and not item.captions:
                detail = f"{tables} has no row for it, and it has no sidecar file with a caption"
                item = Rejection(item.origin, "no_captions", detail, item.seen)
            self.seen += item.seen
            yield item


def saved_tables(folder: Path, split: str | None = None) -> list[Path]:
    """The Arrow files of a folder that `save_to_disk` of `datasets` wrote (a dataset, or one per split); else none.

    Raises:
        DatasetError: a split has to be chosen or does not exist, or a file is damaged or missing.
    """
    if (folder / _SAVED_SPLITS).is_file():
        splits = _json_list(folder / _SAVED_SPLITS, "splits")
        chosen = split or (splits[0] if len(splits) == 1 else None)
        if chosen not in splits:
            asked = f"has no split {chosen!r}" if chosen else "has several splits"
            raise DatasetError(f"{folder}: {asked}; choose one with --split: {', '.join(map(str, splits))}")
        folder, split = folder / str(chosen), None
    state = folder / _SAVED_STATE
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return []
    own = _json_of(state).get("_split")
    if split is not None and split != own:
        only = f"it is the split {own!r}" if own else "its only dataset is of no split"
        raise DatasetError(f"{folder}: has no split {split!r}; {only}: leave out --split")
    files = _json_list(state, "_data_files")
    tables = [folder / str(file.get("filename") if isinstance(file, dict) else file) for file in files]
    if missing := [table.name for table in tables if not table.is_file()]:
        raise DatasetError(f"{folder}: {_SAVED_STATE} lists {missing[0]}, which is missing; copy the folder again")
    return tables


def _json_of(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable JSON ({one_line(error)}); copy the folder again") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: not a JSON object; copy the folder again")
    return value


def _json_list(path: Path, key: str) -> list[Any]:
    value = _json_of(path).get(key)
    if not isinstance(value, list) or not value:
        raise DatasetError(f"{path}: no list {key!r}; save the dataset again with save_to_disk")
    return value


def of_split(folder: Path, tables: Sequence[str], split: str) -> list[str]:
    """The Parquet or Arrow files of a split, by their names or folders.

    Raises:
        DatasetError: there are none.
    """
    splits = {table: _split_of_table(table) for table in tables}
    found = [table for table, own in splits.items() if own == split]
    if not found:
        known = ", ".join(sorted(set(splits.values()) - {""})) or "none"
        raise DatasetError(f"{folder}: has no table of the split {split!r}; its splits: {known}")
    return found


def _split_of_table(table: str) -> str:
    parent, name = os.path.split(table)
    shard = _SHARD.fullmatch(name)
    last = Path(name).stem.rpartition("-")[2]  # datasets caches NAME-train.arrow
    split = shard["split"] if shard else last if last.lower() in SPLIT_WORDS else ""
    return "/".join([part for part in (_split_of_folder(Path(parent).parts), split) if part])


def shard_tables(files: Sequence[str]) -> list[str]:
    """The Parquet files among `files`; if there are none, the Arrow files, without what `datasets` caches of others."""
    parquet = [file for file in files if file.lower().endswith(".parquet")]
    arrow = [file for file in files if file.lower().endswith(".arrow")]
    return parquet or [file for file in arrow if not _CACHED.fullmatch(os.path.basename(file))]


def metadata_tables(folder: Path, files: Sequence[str]) -> list[Path]:
    """The metadata tables of an AudioFolder: one in the folder, or one per subfolder.

    Raises:
        DatasetError: a folder has several, or they are of several splits.
    """
    tables = [folder / file for file in files if os.path.basename(file) in METADATA_NAMES]
    _check_one_split(folder, {_split_of_folder(table.relative_to(folder).parts[:-1]): table for table in tables})
    for table in tables:
        if len([other for other in tables if other.parent == table.parent]) > 1:
            raise DatasetError(f"{table.parent}: contains several metadata tables; give the one to read as SOURCE")
    return tables


def unread_files(folder: Path, tables: Sequence[str], files: Sequence[str]) -> list[Rejection]:
    """Rejections for the other files of a folder of Parquet or Arrow files, and for missing `NNNNN-of-NNNNN` shards.

    Raises:
        DatasetError: they are of several splits; the user has to choose one.
    """
    splits: dict[str, Path] = {}
    groups: dict[tuple[str, str, str], set[int]] = {}
    for table in tables:
        parent, name = os.path.split(table)
        splits[_split_of_table(table)] = folder / table
        if shard := _SHARD.fullmatch(name):
            groups.setdefault((parent, shard["split"], shard["count"]), set()).add(int(shard["number"]))
    _check_one_split(folder, splits)
    beside = f"not read, because the folder has {Path(tables[0]).suffix} files"
    rejected = [Rejection(file, "beside_tables", beside) for file in files if file not in set(tables)]
    for (parent, split, count), numbers in groups.items():
        if missing := _gaps(sorted(numbers), int(count), len(count)):
            name = os.path.join(parent, f"{split}-*-of-{count}{Path(tables[0]).suffix}")
            detail = (
                f"{int(count) - len(numbers)} of {int(count)} shards are missing: {missing}; download them if needed"
            )
            rejected.append(Rejection(name, "missing_shards", detail))
    return rejected


def _gaps(numbers: Sequence[int], count: int, digits: int) -> str:
    """The numbers in [0, count) that are missing from ascending `numbers`, as text."""
    gaps = []
    for before, after in zip([-1, *numbers], [*numbers, count], strict=True):
        if after - before > 1:
            first, last = f"{before + 1:0{digits}d}", f"{after - 1:0{digits}d}"
            gaps.append(first if first == last else f"{first} to {last}")
    return ", ".join(gaps)


def other_tables(files: Sequence[str]) -> list[str]:
    """The tables among `files`, those nearest to the top folder first; not JSON, which may be a sidecar."""
    found = [file for file in files if os.path.splitext(file)[1].lower() in TABLE_EXTENSIONS - {".json"}]
    return sorted(found, key=lambda file: (file.count(os.sep), file))


def _check_one_split(folder: Path, splits: dict[str, Path]) -> None:
    if len(splits) < 2:
        return
    example = next(iter(splits.values()))
    shard = _SHARD.fullmatch(example.name)
    choice = example.parent / f"{shard['split']}-*.{shard['kind']}" if shard else example
    raise DatasetError(
        f"{folder}: contains the splits {', '.join(map(repr, sorted(splits)))}; prepare each as a separate dataset, "
        f"with --split, or for example {str(choice)!r}"
    )


def _split_of_folder(folders: Sequence[str]) -> str:
    return "/".join(part for part in folders if part.lower() in SPLIT_WORDS)
