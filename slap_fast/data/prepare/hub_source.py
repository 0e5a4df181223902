"""Hub source: captioned audio of a dataset of the Hugging Face hub, streamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.errors import AudioError
from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.audio.reader import open_audio
from slap_fast.data.format.captions import clean_captions, find_caption_columns, table_captions
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled.tables import labeled_layout
from slap_fast.data.prepare.hub_repository import HubPath, open_split
from slap_fast.data.prepare.label_captions import CAPTION_TEMPLATE, captions_of_labels, find_label_column
from slap_fast.data.prepare.segments import SegmentError, segment_of
from slap_fast.data.prepare.source import BytesAudio, ClipItem, Rejection, SegmentAudio
from slap_fast.data.prepare.table_audio import find_audio_column
from slap_fast.errors import one_line

_CLIP_COLUMNS = ("youtube_id", "start_time")
"""Columns that identify a clip of AudioCaps, whose five captions are in five rows anywhere in the table."""
_MEMBERS = ("json", "txt")  # columns of WebDataset tars that may hold captions


@dataclass(frozen=True)
class HubAudio:
    """A file in a repository of the hub. The worker process downloads it."""

    url: str

    @contextlib.contextmanager
    def open(self) -> Iterator[AudioSource]:
        """Raises DatasetError if the hub cannot be reached, so that an outage does not drop clips."""
        from datasets.utils.file_utils import xopen

        try:
            with xopen(self.url, "rb") as file:
                data = file.read()
        except FileNotFoundError as error:
            raise AudioError("missing_file", self.url) from error
        except Exception as error:  # unrelated types, of the library and of HTTP
            raise DatasetError(
                f"{self.url}: cannot be downloaded ({one_line(error)}); run the same command again to continue"
            ) from error
        with open_audio(data, name=posixpath.basename(self.url)) as sound:
            yield sound


@dataclass
class _Clip:
    """A clip of several rows. `rows`: those that are not rejected."""

    captions: list[str] = field(default_factory=list)
    rows: int = 0
    is_written: bool = False


class HubSource:
    """A dataset of the hub, streamed in one pass and never stored: Parquet, WebDataset, audio files with metadata, ...

    Captions of consecutive rows of the same audio are merged. A later row of the same audio is left out and reported,
    because the clip is written by then. In Parquet tables of AudioCaps (`youtube_id`, `start_time`) all rows of a clip
    are merged: their captions are read before, without the audio.

    Args:
        path: `hf://owner/name[@revision][/config]`.
        split: its name; None: the only one.
        audio_column: found by type and name if None.
        caption_columns: found by name if None.
        caption_template: makes captions of the class names, with one `{}`; None: only for ESC-50 and UrbanSound8K.

    Raises:
        DatasetError: it cannot be read, or its columns are unclear.
        MissingExtraError: `datasets` is not installed.
    """

    def __init__(
        self,
        path: str,
        *,
        split: str | None = None,
        audio_column: str | None = None,
        caption_columns: Sequence[str] | None = None,
        caption_template: str | None = None,
    ) -> None:
        self._split = open_split(HubPath.parse(path), split)
        self._path = self._split.path
        self.name = f"{self._path.repo.rpartition('/')[2]}-{self._split.split}"
        self.seen = 0
        self._audio_columns = self._find_audio(audio_column)
        self._label_column: str | None = None
        self._template = caption_template
        self._caption_columns = self._find_captions(caption_columns)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "hub",
            "path": f"hf://{self._path.repo}",
            "revision": self._split.commit,
            "config": self._path.config,
            "split": self._split.split,
            "audio_column": self._audio_columns,
            "caption_columns": self._caption_columns,
            "caption": self._template,
        }

    def count(self) -> None:
        return None

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = 0
        clips = self._clips_of_rows()
        taken: set[bytes] = set()
        waiting: tuple[bytes, ClipItem] | None = None
        for number, row in enumerate(self._split.rows()):
            self.seen += 1
            if (clip := clips.get(_clip_key(row))) is not None and clip.is_written:
                continue
            identity, item = self._row(number, row)
            if clip is not None:
                clip.rows -= isinstance(item, Rejection)
                if isinstance(item, ClipItem):
                    clip.is_written = True
                    item = replace(item, captions=clean_captions(clip.captions), seen=clip.rows)
                yield item
                continue
            if waiting is not None and identity == waiting[0] and isinstance(item, ClipItem):
                both = clean_captions([*waiting[1].captions, *item.captions])
                waiting = identity, replace(waiting[1], captions=both, seen=waiting[1].seen + 1)
                continue
            if waiting is not None:
                yield waiting[1]
                waiting = None
            if isinstance(item, Rejection):
                yield item
            elif identity in taken:
                detail = "an earlier row has the same audio, and only rows in sequence are merged; to merge all, run "
                detail += f"`hf download {self._path.repo} --repo-type dataset --local-dir DIR`, and give DIR as SOURCE"
                yield Rejection(item.origin, "repeated_audio", detail)
            else:
                taken.add(identity)
                waiting = identity, item
        if waiting is not None:
            yield waiting[1]
        for file in self._unlisted(taken):
            self.seen += 1
            yield Rejection(file, "no_captions", "the metadata of the dataset has no row for it")

    def _unlisted(self, taken: set[bytes]) -> Iterator[str]:
        """Audio files of an AudioFolder that no row names; `datasets` passes them over."""
        if self._split.builder == "audiofolder":
            for url in self._split.files:
                is_audio = os.path.splitext(url)[1].lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS
                if is_audio and _digest(url) not in taken:
                    yield url.removeprefix(self._split.url_prefix)

    def _row(self, number: int, row: dict[str, Any]) -> tuple[bytes, ClipItem | Rejection]:
        origin = f"{self._split.split}[{number}]"
        column = next((name for name in self._audio_columns if row.get(name) is not None), self._audio_columns[0])
        cell = row.get(column)
        file = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        data = cell.get("bytes") if isinstance(cell, dict) else cell if isinstance(cell, bytes) else None
        name = file or str(row.get("__key__") or origin)
        if isinstance(data, bytes):
            audio: BytesAudio | HubAudio = BytesAudio(data)
            identity = _digest(name, data)
        elif isinstance(file, str) and (url := self._url(file)) is not None:
            audio, identity = HubAudio(url), _digest(url)
            name = url.partition("::")[0].removeprefix(self._split.url_prefix).removeprefix("zip://")
        else:
            detail = f"the path {file!r:.200} is not inside the dataset" if file else f"no audio in {column!r}"
            if self._split.builder == "webdataset":
                detail += "; if the sample has other audio, download the tars and give them as SOURCE"
            return b"", Rejection(origin if name == origin else f"{origin} {name}", "malformed_row", detail)
        origin = f"{origin} {name}" if name != origin else origin
        metadata = {
            key: value
            for key, value in row.items()
            if key not in (*self._audio_columns, *self._caption_columns, "__url__") and not _is_binary(value)
        }
        if self._label_column is None or self._template is None:
            captions = table_captions(row.get(column) for column in self._caption_columns)
        else:
            label = self._label_column
            try:
                captions, labels = captions_of_labels(
                    self._template, label, row.get(label), self._split.class_names.get(label)
                )
            except DatasetError as error:
                return b"", Rejection(origin, "malformed_row", str(error))
            metadata |= labels
        item = ClipItem(os.path.splitext(name)[0], captions, audio, origin, metadata)
        try:
            segment = segment_of(metadata)
        except SegmentError as error:
            return b"", Rejection(origin, "malformed_row", str(error))
        if segment is None:
            return identity, item
        cut = replace(
            item, name=f"{item.name}_{segment}", audio=SegmentAudio(audio, segment), origin=f"{origin} {segment}"
        )
        return _digest(str(segment), identity), cut

    def _clips_of_rows(self) -> dict[tuple[str, ...], _Clip]:
        """The clips that have several rows, with all their captions, read without the audio."""
        columns = self._split.columns
        if self._split.builder != "parquet" or not set(_CLIP_COLUMNS) <= set(columns) or self._template is not None:
            return {}
        clips: defaultdict[tuple[str, ...], _Clip] = defaultdict(_Clip)
        for row in self._split.rows([*_CLIP_COLUMNS, *self._caption_columns]):
            if key := _clip_key(row):
                clips[key].rows += 1
                clips[key].captions += table_captions(row.get(column) for column in self._caption_columns)
        return {key: clip for key, clip in clips.items() if clip.rows > 1}

    def _url(self, file: str) -> str | None:
        """The URL of a file of the dataset; None if it is none, such as a path on this machine."""
        inside, _, container = file.rpartition("::")
        if container.startswith(self._split.url_prefix):
            return file if not inside or (inside.startswith("zip://") and "::" not in inside) else None
        if "://" in file or "::" in file or file.startswith(("/", "\\")) or ".." in file.replace("\\", "/").split("/"):
            return None
        return self._split.url(posixpath.normpath(file))

    def _find_audio(self, given: str | None) -> list[str]:
        columns, typed = self._split.columns, self._split.audio_columns
        shown = f"its columns are {', '.join(columns)}"
        if given is not None:
            if given not in columns:
                raise DatasetError(f"{self._path}: no column {given!r}; {shown}")
            return [given]
        if self._split.builder == "webdataset" and typed:
            return typed
        named = find_audio_column(typed) or (typed[0] if len(typed) == 1 else None)
        if len(typed) > 1 and named is None:
            raise DatasetError(
                f"{self._path}: several columns of audio ({', '.join(typed)}); choose one with --audio-column"
            )
        if named is None and (named := find_audio_column(columns)) is None:
            raise DatasetError(f"{self._path}: no column of audio; {shown}: give it with --audio-column")
        return [named]

    def _find_captions(self, given: Sequence[str] | None) -> list[str]:
        """The caption columns; none if captions are made of class names."""
        columns = [name for name in self._split.columns if name not in self._audio_columns]
        shown = f"its columns are {', '.join(self._split.columns)}"
        if given is not None:
            if self._template is not None:
                raise DatasetError("--caption-template makes captions of class names; leave out --caption-columns")
            if missing := [name for name in given if name not in columns]:
                raise DatasetError(f"{self._path}: no column {', '.join(map(repr, missing))}; {shown}")
            return list(given)
        layout = labeled_layout(dict.fromkeys(columns))
        label = layout.class_column if layout else find_label_column(columns)
        found = find_caption_columns(columns) or [name for name in _MEMBERS if name in columns]
        if self._template is None and not found and layout:
            self._template = CAPTION_TEMPLATE
        if self._template is None:
            if not found:
                how = "give it with --caption-columns"
                how += f", or --caption-template {CAPTION_TEMPLATE!r} for the classes in {label!r}" if label else ""
                raise DatasetError(f"{self._path}: no column has a known name for captions; {shown}: {how}")
            return found
        if label is None:
            raise DatasetError(f"{self._path}: no column of class names for --caption-template; {shown}")
        self._label_column = label
        return []


def _clip_key(row: dict[str, Any]) -> tuple[str, ...]:
    values = [row.get(name) for name in _CLIP_COLUMNS]
    return () if any(value is None for value in values) else tuple(map(str, values))


def _digest(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def _is_binary(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))
