"""Published datasets as they are distributed: AudioCaps, Clotho, WavCaps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from slap_fast.audio_files import AUDIO_EXTENSIONS
from slap_fast.data.captions import captions_of
from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.ingest.clip_items import ClipItem, FileAudio, Rejection
from slap_fast.data.ingest.folders import list_audio
from slap_fast.data.ingest.manifests import Manifest, RowSource, audio_column, file_digest, read_rows

_AUDIOCAPS_COLUMNS = frozenset({"audiocap_id", "youtube_id", "start_time", "caption"})
_YOUTUBE_ID = 11  # characters


def detect_layout(path: Path) -> str:
    """`audiocaps`, `wavcaps` or `manifest`, by the fields of the first row."""
    row = next((row for _, row in read_rows(path) if isinstance(row, dict)), {})
    if row.keys() >= _AUDIOCAPS_COLUMNS:
        return "audiocaps"
    if path.suffix.lower() == ".json" and {"id", "caption"} <= row.keys() and audio_column(row) is None:
        return "wavcaps"
    return "manifest"


class AudioFinder:
    """Finds audio files below a folder by name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths relative to the root by file name without its audio extension."""
        found: dict[str, list[str]] = {}
        for file in list_audio(self.root):
            found.setdefault(audio_stem(os.path.basename(file)), []).append(file)
        return found

    @cached_property
    def by_youtube_id(self) -> dict[str, list[tuple[str, str]]]:
        """`(what follows the id in the stem, relative path)` for stems `{id}...` and `Y{id}...`."""
        found: dict[str, list[tuple[str, str]]] = {}
        for stem, files in self.by_stem.items():
            for start in (0, 1) if stem.startswith("Y") else (0,):
                youtube_id, rest = stem[start : start + _YOUTUBE_ID], stem[start + _YOUTUBE_ID :]
                if len(youtube_id) == _YOUTUBE_ID and (not rest or rest[0] in "_-. "):
                    found.setdefault(youtube_id, []).append((rest, files[0]))
        return found


def audio_stem(name: str) -> str:
    """`name` without a known audio extension; other dots stay."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in AUDIO_EXTENSIONS else name


class AudioCaps(RowSource):
    """`audiocap_id,youtube_id,start_time,caption`; the five rows of a validation or test clip become one.

    The audio of a row is, below the root: `{youtube_id}_{start}...`, else `{youtube_id}`, each also with a leading `Y`,
    else `{audiocap_id}`.
    """

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = f"audiocaps-{path.stem}"
        self._path = path
        self._finder = AudioFinder(path.resolve().parent if audio_root is None else Path(audio_root))
        row = next((row for _, row in read_rows(path) if isinstance(row, dict)), None)
        if row is not None and (missing := _AUDIOCAPS_COLUMNS - row.keys()):
            raise DatasetError(f"{path}: AudioCaps has columns {', '.join(sorted(missing))}; this has {', '.join(row)}")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "audiocaps",
            "path": str(self._path.resolve()),
            "sha256": file_digest(self._path),
            "audio_root": str(self._finder.root.resolve()),
        }

    def rows(self) -> Iterator[tuple[str, ClipItem | Rejection]]:
        for origin, row in read_rows(self._path):
            if isinstance(row, Rejection):
                yield "", row
                continue
            youtube_id, start = str(row["youtube_id"]).strip(), str(row["start_time"]).strip()
            if not youtube_id:
                yield "", Rejection(origin, "malformed_row", "no youtube_id")
                continue
            name = f"{youtube_id}_{start}"
            path = self._finder.root / (self._find(youtube_id, start, str(row["audiocap_id"])) or f"{name}.wav")
            metadata = {"audiocap_id": row["audiocap_id"], "youtube_id": youtube_id, "start_time": start}
            yield name, ClipItem(name, captions_of(row["caption"]), FileAudio(path), f"{origin} {name}", metadata)

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
        by_id = self._finder.by_stem.get(audiocap_id.strip())
        return by_id[0] if by_id else None


class Clotho(Manifest):
    """`file_name,caption_1,...,caption_5`; audio in the split's folder beside the CSV, or below the root."""

    kind = "clotho"

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        columns = [f"caption_{number}" for number in range(1, 6)]
        super().__init__(path, audio_root, "file_name", columns)
        split = path.stem.rpartition("_")[2]
        if audio_root is None and (self._root / split).is_dir():
            self._root /= split
        self.name = f"clotho-{split}"
        self._finder = AudioFinder(self._root)

    def locate(self, file: str) -> Path:
        direct = self._root / file
        if direct.exists():
            return direct
        found = self._finder.by_stem.get(audio_stem(os.path.basename(file)))
        return self._root / found[0] if found else direct


class WavCaps(RowSource):
    """`{"data": [{"id", "caption", ...}]}`, one JSON or the folder of all; audio `{id}.flac` anywhere below the root.

    FreeSound and SoundBible number their clips alike: audio in a folder called like the JSON's own is preferred.
    """

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = f"wavcaps-{path.resolve().stem}"
        self._path = path
        folder = path if path.is_dir() else path.parent
        self._finder = AudioFinder(folder.resolve() if audio_root is None else Path(audio_root))
        self._files = [path] if path.is_file() else sorted(path.rglob("*.json"))
        self._files = [file for file in self._files if "blacklist" not in file.as_posix()]
        if not self._files:
            raise DatasetError(f"{path}: holds no .json file")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "wavcaps",
            "path": str(self._path.resolve()),
            "sha256": [file_digest(file) for file in self._files],
            "audio_root": str(self._finder.root.resolve()),
        }

    def rows(self) -> Iterator[tuple[str, ClipItem | Rejection]]:
        for file in self._files:
            for origin, row in read_rows(file):
                if isinstance(row, Rejection):
                    yield "", row
                    continue
                name = audio_stem(str(row.get("id") or "").strip())
                if not name:
                    yield "", Rejection(origin, "malformed_row", "no id")
                    continue
                path = self._find(name, file.parent.name)
                name = f"{file.parent.name}/{name}" if self._path.is_dir() else name
                metadata = {field: value for field, value in row.items() if field != "caption"}
                captions = captions_of(row.get("caption"))
                yield str(path), ClipItem(name, captions, FileAudio(path), f"{origin} {name}", metadata)

    def _find(self, stem: str, subset: str) -> Path:
        found = self._finder.by_stem.get(stem, [])
        inside = [file for file in found if subset in Path(file).parts]
        return self._finder.root / (inside or found or [f"{stem}.flac"])[0]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
