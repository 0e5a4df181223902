"""Tables by the folder: shards of Parquet, and Hugging Face's AudioFolder with its `metadata.csv`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.ingest.clip_items import ClipItem, FileAudio, Rejection
from slap_fast.data.ingest.folders import FolderSource
from slap_fast.data.ingest.manifests import Manifest
from slap_fast.data.ingest.table_rows import TABLE_EXTENSIONS

if TYPE_CHECKING:
    from slap_fast.data.ingest.sources import Source

SPLIT_WORDS = frozenset(
    {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "development"}
    | {"eval", "evaluation"}
)
METADATA_NAMES = tuple(f"metadata{extension}" for extension in (".csv", ".jsonl", ".parquet", ".tsv", ".json"))
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<digest>-[0-9a-f]+)?\.parquet")


class SourceChain:
    """Sources one after another, called like the first."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.name = parts[0].name
        self.seen = 0
        self._parts = list(parts)

    def describe(self) -> dict[str, Any]:
        return {"kind": "chain", "parts": [part.describe() for part in self._parts]}

    def count(self) -> int | None:
        counts = [part.count() for part in self._parts]
        return None if None in counts else sum(count or 0 for count in counts)

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = 0
        for part in self._parts:
            yield from part
            self.seen += part.seen


class AbsentShards:
    """Shards that a folder should hold by the names of the others, and does not."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.name = folder.name
        self.seen = len(names)
        self._names = list(names)

    def describe(self) -> dict[str, Any]:
        return {"kind": "absent", "shards": len(self._names)}

    def count(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Rejection]:
        for name in self._names:
            yield Rejection(name, "missing_shard", "the other shards tell of it; download it, or go without")


class UnlistedAudio:
    """The audio of a folder that its metadata table does not name; captions come from files beside it, if at all."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.name = folder.resolve().name
        self.seen = 0
        self._root = folder
        self._folder = FolderSource(folder)
        self._manifest = manifest
        self._tables = {os.path.relpath(table, folder) for table in manifest.tables}

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
        self.seen = 0
        for item in self._folder:
            named = os.path.abspath(self._root / item.origin) in listed or item.origin in self._tables
            if named and item.seen == 1:
                continue
            self.seen += item.seen
            if isinstance(item, ClipItem) and not item.captions:
                detail = f"{', '.join(sorted(self._tables))} has no row for it, and no file beside it has a caption"
                yield Rejection(item.origin, "no_captions", detail, item.seen)
            else:
                yield item


def parquet_tables(folder: Path) -> list[Path]:
    """The Parquet files below a folder, hidden ones aside."""
    return _below(folder, lambda name: name.lower().endswith(".parquet"))


def metadata_tables(folder: Path) -> list[Path]:
    """The metadata tables of an AudioFolder: one in the folder, or one in each of its folders.

    Raises:
        DatasetError: several in one folder, or of several splits.
    """
    tables = _below(folder, METADATA_NAMES.__contains__)
    _one_split(folder, {_split_of_folder(table.relative_to(folder).parts[:-1]): table for table in tables})
    for table in tables:
        if len([other for other in tables if other.parent == table.parent]) > 1:
            raise DatasetError(f"{table.parent}: holds several metadata tables; give the one to be read as SOURCE")
    return tables


def absent_shards(folder: Path, tables: Sequence[Path]) -> list[str]:
    """The names of shards that are absent among the Parquet files of a folder.

    Raises:
        DatasetError: the files are of several splits, which only the user can choose from.
    """
    splits: dict[str, Path] = {}
    groups: dict[tuple[Path, str, str], set[int]] = {}
    for table in tables:
        shard = _SHARD.fullmatch(table.name)
        folders = table.relative_to(folder).parts[:-1]
        split = shard["split"] if shard else table.stem if table.stem.lower() in SPLIT_WORDS else ""
        splits["/".join([part for part in (_split_of_folder(folders), split) if part])] = table
        if shard:
            groups.setdefault((table.parent, shard["split"], shard["count"]), set()).add(int(shard["number"]))
    _one_split(folder, splits)
    return [
        f"{split}-{number:0{len(count)}d}-of-{count}.parquet"
        for (_, split, count), numbers in groups.items()
        for number in range(int(count))
        if number not in numbers
    ]


def tables_in(folder: Path) -> list[Path]:
    """Tables in a folder and in the folders in it, JSON aside, which may be a clip's."""
    found = [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))]
    return [path for path in found if path.suffix.lower() in TABLE_EXTENSIONS - {".json"} and path.is_file()]


def _one_split(folder: Path, splits: dict[str, Path]) -> None:
    if len(splits) < 2:
        return
    example = next(iter(splits.values()))
    shard = _SHARD.fullmatch(example.name)
    choice = example.parent / f"{shard['split']}-*.parquet" if shard else example
    raise DatasetError(
        f"{folder}: holds the splits {', '.join(map(repr, sorted(splits)))}; prepare each into a dataset of its own, "
        f"such as {str(choice)!r}"
    )


def _split_of_folder(folders: Sequence[str]) -> str:
    return "/".join(part for part in folders if part.lower() in SPLIT_WORDS)


def _below(folder: Path, wanted: Any) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if wanted(name) and not name.startswith(".")]
    return sorted(found)
