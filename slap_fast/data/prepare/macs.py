"""Layout of MACS: captions of TAU Urban Acoustic Scenes 2019 in one YAML file, audio in a folder or in TAU's zips."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from slap_fast.data.format.captions import table_captions
from slap_fast.data.format.dataset_files import DatasetError, file_digest
from slap_fast.data.prepare.file_search import audio_stem
from slap_fast.data.prepare.source import ClipItem, Rejection
from slap_fast.data.prepare.table_source import Identity, TableSource
from slap_fast.data.prepare.zip_files import ZipAudioFinder
from slap_fast.errors import one_line

MACS_FILE = "MACS.yaml"


class Macs(TableSource):
    """MACS (Martin and Mesaros, 2021): `files: [{filename, annotations: [{annotator_id, sentence, tags}]}]`.

    Audio is found by its name below the root, also inside the zips of TAU (`*-development.audio.1.zip`, ...).

    Args:
        path: `MACS.yaml`.
        audio_root: the root; the folder of `path` if None.

    Raises:
        DatasetError: the file is not that of MACS.
    """

    name = "macs"

    def __init__(self, path: Path, audio_root: str | os.PathLike[str] | None = None) -> None:
        self._path = path
        self._finder = ZipAudioFinder(path.absolute().parent if audio_root is None else Path(audio_root))
        try:
            with open(path, encoding="utf-8") as file:
                value = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, OSError, UnicodeError) as error:
            raise DatasetError(f"{path}: not readable YAML ({one_line(error)}); download it again") from error
        files = value.get("files") if isinstance(value, dict) else None
        if not isinstance(files, list):
            raise DatasetError(f"{path}: no list `files`, as {MACS_FILE} of MACS has")
        self._files: list[Any] = files

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "macs",
            "path": str(self._path.resolve()),
            "sha256": file_digest(self._path, hashlib.sha256()),
            "audio_root": str(self._finder.root.resolve()),
        }

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        for position, row in enumerate(self._files):
            origin = f"{self._path.name}[{position}]"
            name = row.get("filename") if isinstance(row, dict) else None
            annotations = row.get("annotations") if isinstance(row, dict) else None
            if not isinstance(name, str) or not isinstance(annotations, list):
                yield (), Rejection(origin, "malformed_row", "no filename or no annotations")
                continue
            if bad := [one for one in annotations if not isinstance(one, dict)]:
                yield (), Rejection(f"{origin} {name}", "malformed_row", f"the annotation {bad[0]!r:.80} is no object")
                continue
            origin, name = f"{origin} {name}", os.path.basename(name)
            found = self._finder.by_stem.get(audio_stem(name), [name])
            found = [file for file in found if not self._finder.is_zipped(file)] or found
            if len(found) > 1:
                detail = f"{', '.join(found)} have the same name; keep one of them"
                yield (), Rejection(origin, "ambiguous_audio", detail)
                continue
            metadata = {"tags": [one.get("tags") for one in annotations]}
            captions = table_captions(one.get("sentence") for one in annotations)
            yield (name,), ClipItem(audio_stem(name), captions, self._finder.audio(found[0]), origin, metadata)
