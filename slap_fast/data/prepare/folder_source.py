"""Folder source: a folder of audio files with captions in sidecar files."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.sidecars import read_sidecars
from slap_fast.data.prepare.source import ClipItem, FileAudio, Rejection

_SIDECAR_EXTENSIONS = (".json", ".txt")


class FolderSource:
    """Every audio file below a folder, with captions in a .txt (one per line) or .json file of the same stem.

    Every other file is yielded as a Rejection, so that nothing is left out silently.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.seen = 0
        self._folder = folder
        files, self._left_out = walk_folder(folder)
        self._met = len(files) + len(self._left_out)
        self._files: list[str] = []
        # Keys are normalized: macOS uses another Unicode form than other systems.
        self._sidecars: dict[str, list[str]] = {}
        for file in files:
            extension = _extension(file)
            if extension in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS:
                self._files.append(file)
            elif extension in _SIDECAR_EXTENSIONS:
                self._sidecars.setdefault(_stem(file), []).append(file)
            else:
                self._left_out.append(Rejection(file, "not_audio", "neither audio nor a .txt or .json sidecar"))
        if not self._files:
            raise DatasetError(f"{folder}: contains no audio file ({', '.join(sorted(AUDIO_EXTENSIONS))}) and no .tar")

    def describe(self) -> dict[str, Any]:
        names = "\0".join(self._files).encode("utf-8", "surrogateescape")
        return {"kind": "folder", "path": str(self._folder.resolve()), "files": hashlib.sha256(names).hexdigest()}

    def count(self) -> int | None:
        return len(self._files) + len(self._alone()) + len(self._left_out)

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = self._met
        taken: set[str] = set()
        for file in self._files:
            stem = _stem(file)
            sidecars = sorted(self._sidecars.get(stem, []), key=lambda name: (_extension(name), name))
            # Audio files of one stem share their sidecars, which are counted with the first.
            seen = 1 if stem in taken else 1 + len(sidecars)
            taken.add(stem)
            try:
                captions, metadata = read_sidecars(self._folder / name for name in sidecars)
            except DatasetError as error:
                yield Rejection(file, "bad_metadata", str(error), seen)
            else:
                yield ClipItem(
                    os.path.splitext(file)[0], captions, FileAudio(self._folder / file), file, metadata, seen
                )
        for file in self._alone():
            detail = f"no audio file of this name beside it ({Path(os.path.splitext(file)[0]).name}.wav, .flac, ...)"
            yield Rejection(file, "no_audio", detail)
        yield from self._left_out

    def _alone(self) -> list[str]:
        """Sidecars without audio."""
        stems = {_stem(file) for file in self._files}
        return sorted(file for stem, files in self._sidecars.items() if stem not in stems for file in files)


def _extension(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _stem(file: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(file)[0])
