"""Finds audio files below a folder by what they are called."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path

from slap_fast.audio.files import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.prepare.folders import list_audio

_YOUTUBE_ID = 11  # characters


class AudioFinder:
    """Finds audio files below a folder by name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Paths relative to the root by `audio_stem`; formats that cannot be read only where there is no other."""
        found: dict[str, list[str]] = {}
        for file in list_audio(self.root):
            found.setdefault(audio_stem(os.path.basename(file)), []).append(file)
        for file in list_audio(self.root, OTHER_MEDIA_EXTENSIONS):
            found.setdefault(audio_stem(os.path.basename(file)), [file])
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
    """`name` without a known audio extension, in NFC, whatever the file system writes; other dots stay."""
    stem, extension = os.path.splitext(name)
    known = extension.lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS
    return unicodedata.normalize("NFC", stem if known else name)
