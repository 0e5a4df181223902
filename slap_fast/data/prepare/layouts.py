"""Layouts of published captioned datasets: AudioCaps, Clotho, WavCaps."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import table_captions
from slap_fast.data.format.dataset_files import DatasetError, file_digest
from slap_fast.data.prepare.file_search import AudioFinder, audio_stem, find_file
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import BytesAudio, ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_audio import audio_of_cell, default_audio_root, find_audio_column
from slap_fast.data.prepare.table_rows import first_row, read_rows, read_tables, require_columns
from slap_fast.data.prepare.table_source import Identity, TableSource, describe_tables

_AUDIOCAPS_COLUMNS = frozenset({"audiocap_id", "youtube_id", "start_time", "caption"})
_CLOTHO_COLUMNS = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
_PLACEHOLDER = "wav_path"
"""The audio path in every row of WavCaps."""
_SUBSETS = {"as": "AudioSet_SL", "bbc": "BBC_Sound_Effects", "fsd": "FreeSound", "sb": "SoundBible"}
"""The folders of WavCaps, by the prefix of their JSON files."""


def is_audiocaps(row: dict[str, Any]) -> bool:
    return row.keys() >= _AUDIOCAPS_COLUMNS


def is_clotho(row: dict[str, Any]) -> bool:
    return row.keys() >= set(_CLOTHO_COLUMNS) and find_audio_column(row) == _CLOTHO_COLUMNS[0]


def is_wavcaps(row: dict[str, Any], extension: str = ".json") -> bool:
    audio = find_audio_column(row)
    without_path = row[audio] == _PLACEHOLDER if audio is not None else extension == ".json"
    return {"id", "caption"} <= row.keys() and without_path


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
    """Clotho: `file_name,caption_1,...,caption_5`; audio in the folder of the split near the CSV, or below the root."""

    kind = "clotho"

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        super().__init__(path, audio_root, _CLOTHO_COLUMNS[0], _CLOTHO_COLUMNS[1:])
        split = path.stem.rpartition("_")[2]
        root = self._root(path)
        # The CSVs and the audio are published in separate archives.
        above = [root.parent, *sorted(root.parent.glob("*audio*"))] if audio_root is None else []
        self._given_root = next((folder / split for folder in (root, *above) if (folder / split).is_dir()), root)
        self.name = f"clotho-{split}"
        self._finder = AudioFinder(self._given_root)

    def locate(self, file: str, root: Path) -> Path:
        direct = find_file(root / file)
        if os.path.exists(direct):
            return direct
        # A name with a folder is exact: a file of that name in another folder would be another clip.
        found = [] if os.path.dirname(file) else self._finder.by_stem.get(audio_stem(file), [])
        return root / found[0] if len(found) == 1 else direct


class WavCaps(TableSource):
    """WavCaps: `{"data": [{"id", "caption", ...}]}`, one JSON or their folder; audio `{id}.flac` below the root.

    FreeSound and SoundBible use the same ids. The audio of a subset is in a folder with the name of the folder of its
    JSON (`FreeSound` or `FreeSound_flac`), or in a folder without the name of a subset. Audio of the latter kind that
    could belong to several subsets is rejected as ambiguous.
    """

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = f"wavcaps-{path.resolve().stem}"
        self._path = path
        folder = path if path.is_dir() else default_audio_root(path)
        self._finder = AudioFinder(folder.absolute() if audio_root is None else Path(audio_root))
        self._root_name = self._finder.root.resolve().name
        self._files = [path] if path.is_file() else wavcaps_files(path)
        if not self._files:
            raise DatasetError(f"{path}: contains no .json file of WavCaps")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "wavcaps",
            "path": str(self._path.resolve()),
            "sha256": [file_digest(file, hashlib.sha256()) for file in self._files],
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
                detail = f"{', '.join(found)} {choice}; put the audio of each subset into a folder with its name"
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
        """Candidate audio files of a clip, relative to the root."""
        found = self._finder.by_stem.get(stem, [])
        own = [file for file in found if self._owner(file) == subset]
        if not own:
            # A JSON without a published name may be of any subset.
            strangers = subset not in _SUBSETS.values()
            own = [file for file in found if strangers or self._owner(file) is None]
        if len(own) > 1:
            own = [file for file in own if file.lower().endswith(".flac")] or own
        return own or [f"{subset}/{stem}.flac"]

    def _owner(self, file: str) -> str | None:
        """The subset named by the innermost folder that names one (`FreeSound`, `FreeSound_flac`)."""
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
        """The subsets of each id that several subsets use."""
        if len({_subset_of(file) for file in self._files}) == 1:
            return {}
        claims: defaultdict[str, set[str]] = defaultdict(set)
        for _, subset, row in self._rows():
            if isinstance(row, dict):
                claims[_stem(row)].add(subset)
        return {stem: subsets for stem, subsets in claims.items() if len(subsets) > 1}


def wavcaps_folder(folder: Path) -> bool:
    """Whether this is the folder of WavCaps or of its JSONs, by their published names."""
    return any(
        row
        for prefix in _SUBSETS
        for parent in ("", "*/", "json_files/*/")
        for file in folder.glob(f"{parent}{prefix}_final.json")
        if (row := is_wavcaps(first_row(file)))
    )


def wavcaps_files(folder: Path) -> list[Path]:
    """The JSON tables of WavCaps below a folder, without the blacklists."""
    inside = folder / "json_files"
    files = sorted((inside if inside.is_dir() else folder).rglob("*.json"))
    return [file for file in files if "blacklist" not in file.relative_to(folder).as_posix()]


def _subset_of(file: Path) -> str:
    """The subset of a JSON: by its name if that is a published one, else by its folder."""
    return _SUBSETS.get(file.stem.partition("_")[0], file.absolute().parent.name)


def _stem(row: dict[str, Any]) -> str:
    return audio_stem("" if row.get("id") is None else str(row["id"]).strip())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
