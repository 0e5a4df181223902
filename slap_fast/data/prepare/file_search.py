"""File search: lists the files below a folder and finds audio files by name."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME, PART_NAME, STATE_FOLDER
from slap_fast.data.prepare.source import Rejection

_YOUTUBE_ID = 11  # characters


class AudioFinder:
    """Finds audio files below a folder by name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths relative to the root, by `audio_stem`; unsupported formats only if there is no supported one."""
        found: dict[str, list[str]] = {}
        for file in list_audio(self.root):
            found.setdefault(audio_stem(os.path.basename(file)), []).append(file)
        for file in list_audio(self.root, OTHER_MEDIA_EXTENSIONS):
            found.setdefault(audio_stem(os.path.basename(file)), [file])
        return found

    @cached_property
    def by_youtube_id(self) -> dict[str, list[tuple[str, str]]]:
        """`(rest of the stem after the id, relative path)` for stems `{id}...` and `Y{id}...`."""
        found: dict[str, list[tuple[str, str]]] = {}
        for stem, files in self.by_stem.items():
            for start in (0, 1) if stem.startswith("Y") else (0,):
                youtube_id, rest = stem[start : start + _YOUTUBE_ID], stem[start + _YOUTUBE_ID :]
                if len(youtube_id) == _YOUTUBE_ID and (not rest or rest[0] in "_-. "):
                    found.setdefault(youtube_id, []).append((rest, files[0]))
        return found


def audio_stem(name: str) -> str:
    """`name` in NFC without a known audio extension; other dots stay."""
    stem, extension = os.path.splitext(name)
    known = extension.lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS
    return unicodedata.normalize("NFC", stem if known else name)


def list_audio(folder: Path, extensions: frozenset[str] = AUDIO_EXTENSIONS) -> list[str]:
    """Relative paths of the audio files below `folder`, sorted, without hidden files and folders."""
    return [file for file in walk_folder(folder)[0] if os.path.splitext(file)[1].lower() in extensions]


def walk_folder(folder: Path) -> tuple[list[str], list[Rejection]]:
    """Relative paths of the files below `folder`, sorted, and Rejections for what was skipped.

    Follows links to folders and enters each folder once. Skips hidden files and folders, and datasets, such as one that
    `prepare` writes below its source.
    """
    found: list[str] = []
    left_out: list[Rejection] = []
    entered = {_identity(folder): "."}

    def unreadable(error: OSError) -> None:
        left_out.append(Rejection(relative(error.filename), "unreadable_folder", error.strerror or str(error)))

    def relative(path: str) -> str:
        return os.path.relpath(path, folder)

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        # Folders before links, so that clips are named after the folder and not after a link to it.
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
                detail = f"the same folder as {entered[identity]}, which is read once"
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
    """The existing file at `path`, possibly spelled in another Unicode form or with backslashes; else `path`."""
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
    names = ((STATE_FOLDER,), (INFO_NAME, INDEX_NAME), (PART_NAME, INDEX_NAME))
    return any(all(os.path.exists(os.path.join(path, name)) for name in together) for together in names)


def _identity(path: str | Path) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino
