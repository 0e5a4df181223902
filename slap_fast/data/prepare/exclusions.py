"""Exclusion lists: ids of clips to leave out of a dataset, such as WavCaps' blacklists of evaluation clips."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import DatasetError, file_digest
from slap_fast.data.prepare.file_search import audio_stem
from slap_fast.data.prepare.source import ClipItem, Rejection, Source
from slap_fast.data.prepare.table_rows import read_rows

_ID_COLUMNS = (
    *("id", "sound_id", "freesound_id", "youtube_id", "ytid", "video_id", "clip_id", "audio_id", "fname"),
    *("file_name", "filename", "slice_file_name", "fsid"),
)
_YOUTUBE_ID = 11  # characters


class Exclusions:
    """Ids of clips to leave out.

    An id is compared without an audio extension and without the `Y` before a YouTube id. It fits a clip by the name of
    its file, or by its metadata (`id`, `youtube_id`, `sound_id`, ...).

    Args:
        files: `.json`, a list of ids or an object of lists by subset (as WavCaps' blacklists: `AudioSet`, `FreeSound`);
            `.csv` or `.tsv`, with a column of ids (as DCASE's lists of Freesound ids); or text, one id per line.

    Raises:
        DatasetError: a file cannot be read or holds no id.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        # By subset in lower case; "" fits all.
        self._where: dict[str, dict[str, str]] = {}
        for file in files:
            self._read(file)

    def digests(self) -> list[str]:
        return [file_digest(file, hashlib.sha256()) for file in self._files]

    def find(self, item: ClipItem) -> str | None:
        """The file that lists a clip, or None."""
        subset = str(item.metadata.get("subset") or "").lower()
        ids = {_comparable(str(item.metadata[name])) for name in _known(item.metadata)}
        ids.add(_comparable(os.path.basename(item.name)))
        for listed, where in self._where.items():
            if not listed or not subset or subset.startswith(listed):
                for one in ids & where.keys():
                    return where[one]
        return None

    def _read(self, file: Path) -> None:
        try:
            extension = file.suffix.lower()
            if extension == ".json":
                self._add_json(file)
            elif extension in (".csv", ".tsv"):
                self._add("", _column(file), file)
            else:
                self._add("", file.read_text(encoding="utf-8-sig").splitlines(), file)
        except DatasetError:
            raise
        except OSError as error:
            raise DatasetError(f"{file}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DatasetError(f"{file}: cannot be read as a list of ids ({error})") from error

    def _add_json(self, file: Path) -> None:
        value = json.loads(file.read_bytes())
        lists = value if isinstance(value, dict) else {"": value}
        for subset, ids in lists.items():
            if not isinstance(ids, list) or not all(isinstance(one, (str, int)) for one in ids):
                raise DatasetError(f"{file}: neither a list of ids nor an object of lists, as WavCaps' blacklists are")
            self._add(subset.lower(), list(map(str, ids)), file)

    def _add(self, subset: str, ids: Sequence[str], file: Path) -> None:
        found = {_comparable(one): file.name for one in ids if one.strip()}
        if not found and not subset:
            raise DatasetError(f"{file}: holds no id")
        self._where.setdefault(subset, {}).update(found)


class ExcludingSource:
    """A source without the clips that are in exclusion lists; these are counted and reported as `excluded`."""

    def __init__(self, source: Source, exclusions: Exclusions) -> None:
        self.name = source.name
        self.seen = 0
        self._source = source
        self._exclusions = exclusions

    def describe(self) -> dict[str, Any]:
        return self._source.describe() | {"exclude": self._exclusions.digests()}

    def count(self) -> int | None:
        return self._source.count()

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        for item in self._source:
            file = self._exclusions.find(item) if isinstance(item, ClipItem) else None
            yield item if file is None else Rejection(item.origin, "excluded", f"listed in {file}", item.seen)
        self.seen = self._source.seen


def _column(file: Path) -> list[str]:
    rows = [row for _, row in read_rows(file)]
    if bad := next((row for row in rows if isinstance(row, Rejection)), None):
        raise DatasetError(f"{file.parent / bad.origin}: {bad.detail}")
    names = list(rows[0]) if rows and isinstance(rows[0], dict) else []
    known = _known(names)
    if not known and len(names) != 1:
        raise DatasetError(f"{file}: no column of ids ({', '.join(names)}); name it id")
    # An only column without a known name may have no header.
    column, first = (known[0], []) if known else (names[0], names)
    return first + [str(row[column]) for row in rows if isinstance(row, dict)]


def _known(names: Any) -> list[str]:
    lower = {str(name).lower(): name for name in names}
    return [lower[name] for name in _ID_COLUMNS if name in lower]


def _comparable(one: str) -> str:
    stem = audio_stem(os.path.basename(one.strip()))
    return stem[1:] if len(stem) == _YOUTUBE_ID + 1 and stem.startswith("Y") else stem
