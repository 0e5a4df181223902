"""Layout of WavCaps: four JSONs of captions, and audio in folders or zips."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import table_captions
from slap_fast.data.format.dataset_files import DatasetError, file_digest
from slap_fast.data.prepare.file_search import audio_stem
from slap_fast.data.prepare.source import ClipItem, Rejection
from slap_fast.data.prepare.table_audio import default_audio_root, find_audio_column
from slap_fast.data.prepare.table_rows import first_row, read_rows
from slap_fast.data.prepare.table_source import Identity, TableSource
from slap_fast.data.prepare.zip_files import ZipAudioFinder, join_hint

_PLACEHOLDER = "wav_path"
"""The audio path in every row of WavCaps."""
_SUBSETS = {"as": "AudioSet_SL", "bbc": "BBC_Sound_Effects", "fsd": "FreeSound", "sb": "SoundBible"}
"""The folders of WavCaps, by the prefix of their JSON files."""


def is_wavcaps(row: dict[str, Any], extension: str = ".json") -> bool:
    audio = find_audio_column(row)
    without_path = row[audio] == _PLACEHOLDER if audio is not None else extension == ".json"
    return {"id", "caption"} <= row.keys() and without_path


class WavCaps(TableSource):
    """WavCaps: `{"data": [{"id", "caption", ...}]}`, one JSON or their folder; audio `{id}.flac` below the root.

    FreeSound and SoundBible use the same ids. The audio of a subset is in a folder with the name of the folder of its
    JSON (`FreeSound` or `FreeSound_flac`), or in a folder without the name of a subset. Audio of the latter kind that
    could belong to several subsets is rejected as ambiguous. Zips are folders in this sense, and read in place. If the
    JSONs are in `json_files` as published, the root is the folder above.

    Raises:
        DatasetError: no JSON, or (by iterating) all audio of a subset is in a zip that is split into parts.
    """

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = f"wavcaps-{path.resolve().stem}"
        self._path = path
        folder = (path if path.is_dir() else default_audio_root(path)).absolute()
        above = next((parent.parent for parent in (folder, *folder.parents) if parent.name == "json_files"), folder)
        self._finder = ZipAudioFinder(above if audio_root is None else Path(audio_root))
        self._unpacked: dict[str, bool] = {}
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
            if not found and (part := self._part_of(subset)):
                hint = join_hint(self._finder.root, part)
                if not self._is_unpacked(subset):
                    raise DatasetError(hint)
                yield (), Rejection(f"{origin} {name}", "missing_file", f"{stem}.flac is nowhere, but {hint}")
                continue
            found = found or [f"{subset}/{stem}.flac"]
            owners = self._contested.get(stem, set()) if self._owner(found[0]) != subset else set()
            if len(found) > 1 or owners:
                choice = f"could be of {' or '.join(sorted(owners))}" if owners else f"could each be {name}"
                detail = f"{', '.join(found)} {choice}; put the audio of each subset into a folder with its name"
                yield (), Rejection(f"{origin} {name}", "ambiguous_audio", detail)
                continue
            metadata = {field: value for field, value in row.items() if field != "caption" and value != _PLACEHOLDER}
            captions = table_captions([row.get("caption")])
            audio = self._finder.audio(found[0])
            yield (subset, stem), ClipItem(name, captions, audio, f"{origin} {name}", {"subset": subset} | metadata)

    def _rows(self) -> Iterator[tuple[str, str, dict[str, Any] | Rejection]]:
        for file in self._files:
            subset = _subset_of(file)
            for origin, row in read_rows(file):
                if isinstance(row, dict) and not _stem(row):
                    row = Rejection(origin, "malformed_row", "no id")
                yield origin, subset, row

    def _find(self, stem: str, subset: str) -> list[str]:
        """Candidate audio files of a clip, relative to the root; unpacked ones if there are any."""
        found = self._finder.by_stem.get(stem, [])
        own = [file for file in found if self._owner(file) == subset]
        if not own:
            # A JSON without a published name may be of any subset.
            strangers = subset not in _SUBSETS.values()
            own = [file for file in found if strangers or self._owner(file) is None]
        if len(own) > 1:
            own = [file for file in own if file.lower().endswith(".flac")] or own
        return [file for file in own if not self._finder.is_zipped(file)] or own

    def _is_unpacked(self, subset: str) -> bool:
        """Whether any clip of the subset has audio."""
        if subset not in self._unpacked:
            rows = (row for _, one, row in self._rows() if one == subset and isinstance(row, dict))
            self._unpacked[subset] = any(self._find(_stem(row), subset) for row in rows)
        return self._unpacked[subset]

    def _part_of(self, subset: str) -> str | None:
        """A zip in parts that may hold the audio of a subset."""
        parts = [part for part in self._finder.parts if self._owner(f"{os.path.splitext(part)[0]}/") in (subset, None)]
        return next(iter(parts), None)

    def _owner(self, file: str) -> str | None:
        """The subset named by the innermost folder that names one (`FreeSound`, `FreeSound_flac`)."""
        for part in reversed((self._root_name, *file.split("/")[:-1])):
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
