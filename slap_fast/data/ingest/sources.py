"""Where captioned audio comes from: folders, manifests, WebDataset tars, published layouts, clips made on the fly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from slap_fast.data.captions import captions_of
from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.ingest.clip_items import Clip, ClipItem, Rejection, RenderedAudio
from slap_fast.data.ingest.folders import FolderSource
from slap_fast.data.ingest.layouts import AudioCaps, Clotho, WavCaps, detect_layout
from slap_fast.data.ingest.manifests import MANIFEST_EXTENSIONS, Manifest
from slap_fast.data.ingest.tar_source import TarSource

Layout = Literal["auto", "manifest", "folder", "webdataset", "audiocaps", "clotho", "wavcaps"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


class Source(Protocol):
    """Captioned audio in an order that never changes.

    Attributes:
        name: what the dataset is called.
        seen: files, rows or members met, once an iteration has ended: the sum of `seen` over what it yielded.
    """

    name: str
    seen: int

    def describe(self) -> dict[str, Any]:
        """JSON values that decide what iteration yields: a resumed run must find them unchanged."""
        ...

    def count(self) -> int | None:
        """How many items iteration yields, for the progress bar; None where only iterating would tell."""
        ...

    def __iter__(self) -> Iterator[ClipItem | Rejection]: ...


def open_source(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    layout: Layout = "auto",
    audio_root: str | os.PathLike[str] | None = None,
    audio_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
) -> Source:
    """Recognises what lies at `path`.

    Args:
        path: a manifest (.csv, .tsv, .json, .jsonl, .ndjson, .parquet), a folder of audio with sidecar .txt or .json
            files, a .tar, a folder of .tar files, or a list of .tar files.
        layout: `auto`, or which of these it is, or `audiocaps` (its CSV), `clotho` (its CSV) or `wavcaps` (its JSON, or
            the folder of its JSONs). `auto` knows AudioCaps and WavCaps by their columns; Clotho is a manifest.
        audio_root: what audio paths in a manifest are relative to, or where a layout's files are sought; the manifest's
            folder if None.
        audio_column: the manifest's column of audio paths; found by name if None.
        caption_columns: the manifest's columns of captions; found by name if None.

    Raises:
        DatasetError: there is no such file, or it cannot be told what it is.
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if not isinstance(path, (str, os.PathLike)):
        tars = [Path(tar) for tar in path]
        if layout not in ("auto", "webdataset") or not tars or any(tar.suffix != ".tar" for tar in tars):
            raise DatasetError("a list of paths must be a list of .tar files")
        return TarSource(tars)
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{path}: does not exist")
    if path.is_dir():
        if layout == "wavcaps":
            return WavCaps(path, audio_root)
        if layout not in ("auto", "folder", "webdataset"):
            raise DatasetError(f"{path}: is a folder; layout {layout!r} wants the file that lists its clips")
        tars = sorted(path.glob("*.tar"))
        if layout == "webdataset" or (layout == "auto" and tars):
            if not tars:
                raise DatasetError(f"{path}: holds no .tar file")
            return TarSource(tars)
        return FolderSource(path)
    if path.suffix.lower() == ".tar":
        return TarSource([path])
    if path.suffix.lower() not in MANIFEST_EXTENSIONS:
        raise DatasetError(f"{path}: neither a folder, a .tar, nor one of {', '.join(sorted(MANIFEST_EXTENSIONS))}")
    columns_given = audio_column is not None or caption_columns is not None
    chosen = detect_layout(path) if layout == "auto" and not columns_given else layout
    if chosen == "audiocaps":
        return AudioCaps(path, audio_root)
    if chosen == "wavcaps":
        return WavCaps(path, audio_root)
    if chosen == "clotho":
        return Clotho(path, audio_root)
    return Manifest(path, audio_root, audio_column, caption_columns)


class ClipSource:
    """Clips that are made, not read, such as the synthetic dataset's.

    Args:
        clips: makes the iterator anew; or an iterable that is consumed once.
        name: of the dataset.
        description: JSON values that decide what the clips are (a seed, a split).
        total: their number, for the progress bar.
    """

    def __init__(
        self,
        clips: Callable[[], Iterable[Clip]] | Iterable[Clip],
        name: str,
        description: dict[str, Any],
        total: int | None = None,
    ) -> None:
        self.name = name
        self.seen = 0
        self._clips = clips
        self._description = description
        self._total = total

    def describe(self) -> dict[str, Any]:
        return {"kind": "clips", "name": self.name, **self._description}

    def count(self) -> int | None:
        return self._total

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        self.seen = 0
        for clip in self._clips() if callable(self._clips) else self._clips:
            self.seen += 1
            yield ClipItem(clip.key, captions_of(list(clip.captions)), RenderedAudio(clip), clip.key, clip.metadata)
