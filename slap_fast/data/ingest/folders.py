"""Folders of audio with captions in files beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slap_fast.audio_files import AUDIO_EXTENSIONS
from slap_fast.data.captions import captions_of
from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.ingest.clip_items import ClipItem, FileAudio, Rejection


class FolderSource:
    """Every audio file below a folder, with captions in a .txt (one a line) or .json file of the same stem."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self._folder = folder
        self._files = list_audio(folder)
        if not self._files:
            raise DatasetError(f"{folder}: holds no audio file ({', '.join(sorted(AUDIO_EXTENSIONS))}) and no .tar")

    def describe(self) -> dict[str, Any]:
        names = "\0".join(self._files).encode("utf-8", "surrogateescape")
        return {"kind": "folder", "path": str(self._folder.resolve()), "files": hashlib.sha256(names).hexdigest()}

    def count(self) -> int | None:
        return len(self._files)

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        for file in self._files:
            path = self._folder / file
            try:
                captions, metadata = read_sidecars(path)
            except DatasetError as error:
                yield Rejection(file, "bad_metadata", str(error))
            else:
                yield ClipItem(os.path.splitext(file)[0], captions, FileAudio(path), file, metadata)


def read_sidecars(audio: Path) -> tuple[list[str], dict[str, Any]]:
    """Captions and other JSON fields from the files beside `audio`: `dog.wav` has `dog.txt`, `dog.json`, or both."""
    captions: list[str] = []
    metadata: dict[str, Any] = {}
    for extension in (".json", ".txt"):
        path = audio.with_suffix(extension)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DatasetError(f"{path.name} cannot be read ({error.strerror})") from error
        found, metadata_found = parse_sidecar(path.name, data)
        captions += found
        metadata |= metadata_found
    return captions_of(captions), metadata


def parse_sidecar(name: str, data: bytes) -> tuple[list[str], dict[str, Any]]:
    """Captions and other fields of a .json file (an object, a list or a string) or a .txt file (a caption a line).

    Raises:
        DatasetError: it is not UTF-8, or not JSON.
    """
    try:
        text = data.decode("utf-8-sig")
        if not name.lower().endswith(".json"):
            return captions_of(text.splitlines()), {}
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is malformed ({error})") from error
    if not isinstance(value, dict):
        return captions_of(value), {}
    return captions_of(value), value


def list_audio(folder: Path) -> list[str]:
    """Paths relative to `folder` of the audio files below it, sorted; hidden files and folders are passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            if os.path.splitext(file)[1].lower() in AUDIO_EXTENSIONS and not file.startswith("."):
                found.append(os.path.relpath(os.path.join(parent, file), folder))
    return sorted(found)
