"""Layouts of published captioned datasets: AudioCaps and Clotho."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import table_captions
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.file_search import AudioFinder, audio_stem, find_file
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_audio import audio_of_cell, default_audio_root, find_audio_column
from slap_fast.data.prepare.table_rows import first_row, read_tables, require_columns
from slap_fast.data.prepare.table_source import Identity, TableSource, describe_tables

_AUDIOCAPS_COLUMNS = frozenset({"audiocap_id", "youtube_id", "start_time", "caption"})
_CLOTHO_COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))


def is_audiocaps(row: dict[str, Any]) -> bool:
    return row.keys() >= _AUDIOCAPS_COLUMNS


def is_clotho(row: dict[str, Any]) -> bool:
    return row.keys() >= set(_CLOTHO_COLUMNS) and find_audio_column(row) == _CLOTHO_COLUMNS[0]


def split_tables(folder: Path, layout: str = "auto") -> dict[str, list[Path]]:
    """The tables of AudioCaps (`train.csv`, `val.csv`, `test.csv`) or Clotho (`clotho_captions_development.csv`, ...).

    They are in the folder or in its subfolders.
    """
    patterns = {"audiocaps": ("train.csv", "val.csv", "test.csv"), "clotho": ("clotho_captions_*.csv",)}
    fits = {"audiocaps": is_audiocaps, "clotho": is_clotho}
    found: dict[str, list[Path]] = {}
    for name in patterns if layout == "auto" else (layout,):
        for pattern in patterns[name]:
            for table in sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")]):
                if fits[name](first_row(table)):
                    found.setdefault(table.stem.rpartition("_")[2], []).append(table)
        if found:
            break
    return found


class AudioCaps(TableSource):
    """AudioCaps: `audiocap_id,youtube_id,start_time,caption`; the five rows of a validation or test clip are merged.

    The audio file of a row is, below the root: `{youtube_id}_{start}...`, else `{youtube_id}` (both also with a leading
    `Y`), else `{audiocap_id}`. If the table contains audio, as Parquet files from the hub do, that audio is used.
    """

    def __init__(self, path: Path | Sequence[Path], audio_root: str | os.PathLike[str] | None = None) -> None:
        self._paths = [path] if isinstance(path, Path) else list(path)
        self.name = f"audiocaps-{self._paths[0].stem.partition('-')[0]}"
        self._finder = AudioFinder(default_audio_root(self._paths[0]) if audio_root is None else Path(audio_root))
        require_columns(self._paths, _AUDIOCAPS_COLUMNS, "AudioCaps")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "audiocaps",
            **describe_tables(self._paths),
            "audio_root": str(self._finder.root.resolve()),
        }

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        for _, origin, row in read_tables(self._paths):
            yield ((), row) if isinstance(row, Rejection) else self._row(origin, row)

    def _row(self, origin: str, row: dict[str, Any]) -> tuple[Identity, ClipItem | Rejection]:
        if missing := _AUDIOCAPS_COLUMNS - row.keys():
            return (), Rejection(origin, "malformed_row", f"no {', '.join(sorted(missing))}")
        youtube_id, start, audiocap_id = (
            str(row[name]).strip() for name in ("youtube_id", "start_time", "audiocap_id")
        )
        if not youtube_id or row["youtube_id"] is None:
            return (), Rejection(origin, "malformed_row", "no youtube_id")
        name = f"{youtube_id}_{start}"
        captions = table_captions([row["caption"]])
        metadata = {"audiocap_id": row["audiocap_id"], "youtube_id": youtube_id, "start_time": start}
        own = audio_of_cell(origin, row.get(find_audio_column(row) or ""), self._finder.root.joinpath)
        if isinstance(own, Rejection) or (isinstance(own.audio, FileAudio) and not os.path.exists(own.audio.path)):
            file = self._find(youtube_id, start, audiocap_id) or f"{name}.wav"
            audio: FileAudio | BytesAudio = FileAudio(self._finder.root / file)
        else:
            audio = own.audio
        return (name,), ClipItem(name, captions, audio, f"{origin} {name}", metadata)

    def _find(self, youtube_id: str, start: str, audiocap_id: str) -> str | None:
        candidates = self._finder.by_youtube_id.get(youtube_id, [])
        for rest, file in candidates:
            numbers = re.findall(r"\d+(?:\.\d+)?", rest)
            # Some downloaders write the start in milliseconds.
            if numbers and _number(start) in (float(numbers[0]), float(numbers[0]) / 1000):
                return file
        for rest, file in candidates:
            if not rest:
                return file
        by_id = self._finder.by_stem.get(audiocap_id)
        return by_id[0] if by_id else None


class Clotho(Manifest):
    """Clotho: `file_name,caption_1,...,caption_5`; audio in the folder of the split near the CSV, or below the root.

    What `clotho_metadata_{split}.csv` beside the table has of a clip (`sound_id`, `keywords`, ...) is stored with it.

    Raises:
        DatasetError: the audio is still in its 7z archive.
    """

    kind = "clotho"

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        super().__init__(path, audio_root, _CLOTHO_COLUMNS[0], _CLOTHO_COLUMNS[1:])
        split = path.stem.rpartition("_")[2]
        root = self._root(path)
        # The CSVs and the audio are published in separate archives.
        above = [root.parent, *sorted(root.parent.glob("*audio*"))] if audio_root is None else []
        folder = next((folder / split for folder in (root, *above) if (folder / split).is_dir()), None)
        self._given_root = folder or root
        archives = [place / f"clotho_audio_{split}.7z" for place in (root, root.parent)]
        if folder is None and (packed := next((file for file in archives if file.is_file()), None)):
            raise DatasetError(
                f"{packed}: unpack it first: `7z x '{packed}' -o'{packed.parent}'`; its folder {split}/ is searched "
                f"in {root} and beside it"
            )
        self._metadata = _clotho_metadata(path)
        self.name = f"clotho-{split}"
        self._finder = AudioFinder(self._given_root)

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        for identity, item in super().rows():
            if isinstance(item, ClipItem) and (known := self._metadata.get(os.path.basename(item.origin).strip())):
                item = replace(item, metadata=known | item.metadata)
            yield identity, item

    def locate(self, file: str, root: Path) -> Path:
        direct = find_file(root / file)
        if os.path.exists(direct):
            return direct
        # A name with a folder is exact: a file of that name in another folder would be another clip.
        found = [] if os.path.dirname(file) else self._finder.by_stem.get(audio_stem(file), [])
        return root / found[0] if len(found) == 1 else direct


def _clotho_metadata(captions: Path) -> dict[str, dict[str, str]]:
    """The rows of the metadata table beside a table of captions, by file name. Some versions are not UTF-8."""
    path = captions.with_name(captions.name.replace("captions", "metadata"))
    if path == captions or not path.is_file():
        return {}
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if rows and "file_name" not in rows[0]:
        raise DatasetError(
            f"{path}: no column file_name ({', '.join(map(str, rows[0]))}); download it again, or remove it"
        )
    given = {row["file_name"].strip(): row for row in rows if row["file_name"]}
    return {
        file: {name: value for name, value in row.items() if isinstance(value, str) and value and name}
        for file, row in given.items()
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
