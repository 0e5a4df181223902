"""Published datasets as they are distributed: AudioCaps, Clotho, WavCaps."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import table_captions
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.file_search import AudioFinder, audio_stem, find_file
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_audio import audio_column, audio_of_cell, default_audio_root
from slap_fast.data.prepare.table_rows import column_names, first_row, read_rows, read_tables
from slap_fast.data.prepare.table_source import Identity, TableSource, described_tables, file_digest

_AUDIOCAPS_COLUMNS = frozenset({"audiocap_id", "youtube_id", "start_time", "caption"})
_CLOTHO_COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
_PLACEHOLDER = "wav_path"
"""What every row of WavCaps says of its audio."""
_SUBSETS = {"as": "AudioSet_SL", "bbc": "BBC_Sound_Effects", "fsd": "FreeSound", "sb": "SoundBible"}
"""WavCaps' folders, by how the names of their JSONs begin."""


def is_audiocaps(row: dict[str, Any]) -> bool:
    return row.keys() >= _AUDIOCAPS_COLUMNS


def is_clotho(row: dict[str, Any]) -> bool:
    return row.keys() >= set(_CLOTHO_COLUMNS) and audio_column(row) == _CLOTHO_COLUMNS[0]


def is_wavcaps(row: dict[str, Any], extension: str = ".json") -> bool:
    audio = audio_column(row)
    said = row[audio] == _PLACEHOLDER if audio is not None else extension == ".json"
    return {"id", "caption"} <= row.keys() and said


class AudioCaps(TableSource):
    """`audiocap_id,youtube_id,start_time,caption`; the five rows of a validation or test clip become one.

    The audio of a row is, below the root: `{youtube_id}_{start}...`, else `{youtube_id}`, each also with a leading `Y`,
    else `{audiocap_id}`. Where the table has audio of its own, as Parquet files from the hub do, that is taken.
    """

    def __init__(self, path: Path | Sequence[Path], audio_root: str | os.PathLike[str] | None = None) -> None:
        self._paths = [path] if isinstance(path, Path) else list(path)
        self.name = f"audiocaps-{self._paths[0].stem.partition('-')[0]}"
        self._finder = AudioFinder(default_audio_root(self._paths[0]) if audio_root is None else Path(audio_root))
        for table in self._paths:
            names = column_names(table)
            if names and (missing := _AUDIOCAPS_COLUMNS.difference(names)):
                raise DatasetError(
                    f"{table}: AudioCaps has columns {', '.join(sorted(missing))}; this has {', '.join(names)}"
                )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "audiocaps",
            **described_tables(self._paths),
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
        own = audio_of_cell(origin, row.get(audio_column(row) or ""), self._finder.root.joinpath)
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
            # Some downloaders name the start in milliseconds.
            if numbers and _number(start) in (float(numbers[0]), float(numbers[0]) / 1000):
                return file
        for rest, file in candidates:
            if not rest:
                return file
        by_id = self._finder.by_stem.get(audiocap_id)
        return by_id[0] if by_id else None


class Clotho(Manifest):
    """`file_name,caption_1,...,caption_5`; audio in the split's folder near the CSV, or below the root."""

    kind = "clotho"

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        super().__init__(path, audio_root, _CLOTHO_COLUMNS[0], _CLOTHO_COLUMNS[1:])
        split = path.stem.rpartition("_")[2]
        root = self._root(path)
        # The CSVs and the audio are published in archives of their own.
        above = [root.parent, *sorted(root.parent.glob("*audio*"))] if audio_root is None else []
        self._given_root = next((folder / split for folder in (root, *above) if (folder / split).is_dir()), root)
        self.name = f"clotho-{split}"
        self._finder = AudioFinder(self._given_root)

    def locate(self, file: str, root: Path) -> Path:
        direct = find_file(root / file)
        if os.path.exists(direct):
            return direct
        # A name with a folder says where it lies; another file of that name would be another clip.
        found = [] if os.path.dirname(file) else self._finder.by_stem.get(audio_stem(file), [])
        return root / found[0] if len(found) == 1 else direct


class WavCaps(TableSource):
    """`{"data": [{"id", "caption", ...}]}`, one JSON or the folder of all; audio `{id}.flac` anywhere below the root.

    FreeSound and SoundBible number their clips alike. A subset's audio lies in a folder called as its JSON's own, such
    as `FreeSound` or `FreeSound_flac`, or in one that bears no subset's name; audio there that several subsets could
    mean is nobody's.
    """

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = f"wavcaps-{path.resolve().stem}"
        self._path = path
        folder = path if path.is_dir() else default_audio_root(path)
        self._finder = AudioFinder(folder.absolute() if audio_root is None else Path(audio_root))
        self._root_name = self._finder.root.resolve().name
        self._files = [path] if path.is_file() else wavcaps_files(path)
        if not self._files:
            raise DatasetError(f"{path}: holds no .json file of WavCaps")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "wavcaps",
            "path": str(self._path.resolve()),
            "sha256": [file_digest(file) for file in self._files],
            "audio_root": str(self._finder.root.resolve()),
        }

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        for origin, subset, row in self._rows():
            if isinstance(row, Rejection):
                yield (), row
                continue
            stem = _stem(row)
            found = self._find(stem, subset)
            name = f"{subset}/{stem}" if self._path.is_dir() else stem
            owners = self._contested.get(stem, set()) if self._owner(found[0]) != subset else set()
            if len(found) > 1 or owners:
                choice = f"could be of {' or '.join(sorted(owners))}" if owners else f"could each be {name}"
                detail = f"{', '.join(found)} {choice}; put the audio of each subset into a folder of its name"
                yield (), Rejection(f"{origin} {name}", "ambiguous_audio", detail)
                continue
            path = self._finder.root / found[0]
            metadata = {field: value for field, value in row.items() if field != "caption" and value != _PLACEHOLDER}
            captions = table_captions([row.get("caption")])
            yield (subset, stem), ClipItem(name, captions, FileAudio(path), f"{origin} {name}", metadata)

    def _rows(self) -> Iterator[tuple[str, str, dict[str, Any] | Rejection]]:
        for file in self._files:
            subset = _subset_of(file)
            for origin, row in read_rows(file):
                if isinstance(row, dict) and not _stem(row):
                    row = Rejection(origin, "malformed_row", "no id")
                yield origin, subset, row

    def _find(self, stem: str, subset: str) -> list[str]:
        """Where the clip may lie, relative to the root."""
        found = self._finder.by_stem.get(stem, [])
        own = [file for file in found if self._owner(file) == subset]
        if not own:
            # A JSON of no published name may be about any subset.
            strangers = subset not in _SUBSETS.values()
            own = [file for file in found if strangers or self._owner(file) is None]
        if len(own) > 1:
            own = [file for file in own if file.lower().endswith(".flac")] or own
        return own or [f"{subset}/{stem}.flac"]

    def _owner(self, file: str) -> str | None:
        """The subset that the innermost folder is called by, as `FreeSound` and `FreeSound_flac` are."""
        for part in reversed((self._root_name, *Path(file).parts[:-1])):
            for subset in self._subsets:
                if re.fullmatch(re.escape(subset) + r"([_\-. ].*)?", part, re.IGNORECASE):
                    return subset
        return None

    @cached_property
    def _subsets(self) -> list[str]:
        return sorted({*_SUBSETS.values(), *map(_subset_of, self._files)}, key=len, reverse=True)

    @cached_property
    def _contested(self) -> dict[str, set[str]]:
        """Subsets by id, of the ids that several of them have."""
        if len({_subset_of(file) for file in self._files}) == 1:
            return {}
        claims: defaultdict[str, set[str]] = defaultdict(set)
        for _, subset, row in self._rows():
            if isinstance(row, dict):
                claims[_stem(row)].add(subset)
        return {stem: subsets for stem, subsets in claims.items() if len(subsets) > 1}


def wavcaps_folder(folder: Path) -> bool:
    """Whether a folder is that of WavCaps, or of its JSONs, by their published names."""
    places = ("", "*/", "json_files/*/")
    return any(
        row
        for prefix in _SUBSETS
        for place in places
        for file in folder.glob(f"{place}{prefix}_final.json")
        if (row := is_wavcaps(first_row(file)))
    )


def wavcaps_files(folder: Path) -> list[Path]:
    """The JSONs of WavCaps below a folder that are its tables, without the lists of clips to leave out."""
    inside = folder / "json_files"
    files = sorted((inside if inside.is_dir() else folder).rglob("*.json"))
    return [file for file in files if "blacklist" not in file.relative_to(folder).as_posix()]


def _subset_of(file: Path) -> str:
    """The subset of a JSON: by its name if it is the published one, else its folder's."""
    return _SUBSETS.get(file.stem.partition("_")[0], file.absolute().parent.name)


def _stem(row: dict[str, Any]) -> str:
    return audio_stem("" if row.get("id") is None else str(row["id"]).strip())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
