"""Folders of audio with captions in files beside it."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slap_fast.audio.files import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.captions import captions_of
from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME, STATE_FOLDER, DatasetError
from slap_fast.data.prepare.clip_items import ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_rows import RepeatedKey, json_object

_SIDECAR_EXTENSIONS = (".json", ".txt")


class FolderSource:
    """Every audio file below a folder, with captions in a .txt (one a line) or .json file of the same stem.

    Whatever else lies there is yielded as a Rejection: nothing that was met goes unnamed.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.seen = 0
        self._folder = folder
        files, self._left_out = walk_folder(folder)
        self._met = len(files) + len(self._left_out)
        self._files: list[str] = []
        # A Mac writes names in another Unicode form than what else comes along.
        self._sidecars: dict[str, list[str]] = {}
        for file in files:
            extension = _extension(file)
            if extension in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS:
                self._files.append(file)
            elif extension in _SIDECAR_EXTENSIONS:
                self._sidecars.setdefault(_stem(file), []).append(file)
            else:
                self._left_out.append(Rejection(file, "not_audio", "neither audio nor a .txt or .json beside it"))
        if not self._files:
            raise DatasetError(f"{folder}: holds no audio file ({', '.join(sorted(AUDIO_EXTENSIONS))}) and no .tar")

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
            # Files of one stem share their captions, which are counted with the first.
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


def read_sidecars(paths: Iterable[Path]) -> tuple[list[str], dict[str, Any]]:
    """Captions and other JSON fields from the files beside a clip: `dog.wav` has `dog.txt`, `dog.json`, or both."""
    captions: list[str] = []
    metadata: dict[str, Any] = {}
    for path in paths:
        try:
            data = path.read_bytes()
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
        value = json.loads(text, object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is malformed ({error})") from error
    if isinstance(value, RepeatedKey):
        raise DatasetError(f"{name} is malformed (the key {value.key!r} stands twice)")
    if not isinstance(value, dict):
        return captions_of(value), {}
    return captions_of(value), value


def list_audio(folder: Path, extensions: frozenset[str] = AUDIO_EXTENSIONS) -> list[str]:
    """Paths relative to `folder` of the audio files below it, sorted; hidden files and folders are passed over."""
    return [file for file in walk_folder(folder)[0] if _extension(file) in extensions]


def walk_folder(folder: Path) -> tuple[list[str], list[Rejection]]:
    """Paths relative to `folder` of the files below it, sorted, and what was passed over, with the reason.

    Links to folders are followed; a folder is entered once, whatever leads to it. Hidden files and folders are passed
    over, and datasets, such as one that `prepare` writes below its source.
    """
    found: list[str] = []
    left_out: list[Rejection] = []
    entered = {_identity(folder): "."}

    def unreadable(error: OSError) -> None:
        left_out.append(Rejection(relative(error.filename), "unreadable_folder", error.strerror or str(error)))

    def relative(path: str) -> str:
        return os.path.relpath(path, folder)

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        # The folder itself before links to it, so that clips are called after where they are.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        enter = []
        for name in folders:
            path = os.path.join(parent, name)
            identity = _identity(path)
            if name.startswith("."):
                left_out.append(Rejection(relative(path) + os.sep, "hidden", "a hidden folder, not entered"))
            elif _is_dataset(path):
                detail = "a dataset of slap-fast, not entered"
                left_out.append(Rejection(relative(path) + os.sep, "dataset_folder", detail))
            elif identity in entered:
                detail = f"leads to the same folder as {entered[identity]}, which is read once"
                left_out.append(Rejection(relative(path) + os.sep, "same_folder", detail))
            else:
                entered[identity] = relative(path)
                enter.append(name)
        folders[:] = enter
        for name in files:
            path = relative(os.path.join(parent, name))
            if name.startswith("."):
                left_out.append(Rejection(path, "hidden", "a hidden file"))
            else:
                found.append(path)
    return sorted(found), sorted(left_out, key=lambda item: item.origin)


def find_file(path: Path) -> Path:
    """The file at `path`, also where it is spelled in another Unicode form or with backslashes; else `path` itself."""
    text = str(path)
    if (text.isascii() and "\\" not in text) or os.path.exists(path):
        return path
    slashed = text.replace("\\", "/")
    for spelled in (text, slashed):
        for form in (spelled, unicodedata.normalize("NFC", spelled), unicodedata.normalize("NFD", spelled)):
            if form != text and os.path.exists(form):
                return Path(form)
    return path


def _is_dataset(path: str) -> bool:
    return os.path.exists(os.path.join(path, STATE_FOLDER)) or all(
        os.path.exists(os.path.join(path, name)) for name in (INFO_NAME, INDEX_NAME)
    )


def _identity(path: str | Path) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino


def _extension(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _stem(file: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(file)[0])
