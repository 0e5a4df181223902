"""Folders of tables: Parquet shards, and Hugging Face's AudioFolder with its `metadata.csv`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.folder_source import FolderSource
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import ClipItem, FileAudio, Rejection, Source
from slap_fast.data.prepare.table_rows import TABLE_EXTENSIONS

SPLIT_WORDS = frozenset(
    {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "development"}
    | {"eval", "evaluation"}
)
METADATA_NAMES = tuple(f"metadata{extension}" for extension in (".csv", ".jsonl", ".parquet", ".tsv", ".json"))
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<digest>-[0-9a-f]+)?\.parquet")


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


def parquet_tables(files: Sequence[str]) -> list[str]:
    """The Parquet files among `files`."""
    return [file for file in files if file.lower().endswith(".parquet")]


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
    """Rejections for the other files of a folder of Parquet files, and for shards missing from `NNNNN-of-NNNNN` names.

    Raises:
        DatasetError: the Parquet files are of several splits; the user has to choose one.
    """
    splits: dict[str, Path] = {}
    groups: dict[tuple[str, str, str], set[int]] = {}
    for table in tables:
        parent, name = os.path.split(table)
        shard = _SHARD.fullmatch(name)
        split = shard["split"] if shard else Path(name).stem if Path(name).stem.lower() in SPLIT_WORDS else ""
        splits["/".join([part for part in (_split_of_folder(Path(parent).parts), split) if part])] = folder / table
        if shard:
            groups.setdefault((parent, shard["split"], shard["count"]), set()).add(int(shard["number"]))
    _check_one_split(folder, splits)
    beside = "not read, because the folder has .parquet files"
    rejected = [Rejection(file, "beside_tables", beside) for file in files if file not in set(tables)]
    for (parent, split, count), numbers in groups.items():
        if missing := _gaps(sorted(numbers), int(count), len(count)):
            name = os.path.join(parent, f"{split}-*-of-{count}.parquet")
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
    choice = example.parent / f"{shard['split']}-*.parquet" if shard else example
    raise DatasetError(
        f"{folder}: contains the splits {', '.join(map(repr, sorted(splits)))}; prepare each as a separate dataset, "
        f"for example {str(choice)!r}"
    )


def _split_of_folder(folders: Sequence[str]) -> str:
    return "/".join(part for part in folders if part.lower() in SPLIT_WORDS)
