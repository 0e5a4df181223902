"""Where captioned audio comes from: folders, manifests, WebDataset tars, published layouts, clips made on the fly."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from slap_fast.audio.formats import AUDIO_EXTENSIONS
from slap_fast.data.format.captions import caption_columns as caption_columns_of
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare import table_folders
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.folder_source import FolderSource
from slap_fast.data.prepare.labeled_layouts import LABELED_LAYOUTS, LabeledSource, labeled_layout, published_table
from slap_fast.data.prepare.layouts import (
    AudioCaps,
    Clotho,
    WavCaps,
    is_audiocaps,
    is_clotho,
    is_wavcaps,
    wavcaps_folder,
)
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import Source
from slap_fast.data.prepare.table_rows import TABLE_EXTENSIONS, first_row
from slap_fast.data.prepare.tar_source import TarSource

Layout = Literal["auto", "manifest", "folder", "webdataset", "audiocaps", "clotho", "wavcaps", "esc50", "urbansound8k"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
Paths = str | os.PathLike[str]


def open_source(
    path: Paths | Sequence[Paths],
    *,
    layout: Layout = "auto",
    audio_root: Paths | None = None,
    audio_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
) -> Source:
    """Recognises what lies at `path`.

    Args:
        path: a table (.csv, .tsv, .json, .jsonl, .ndjson, .parquet); a folder of audio with sidecar .txt or .json files
            or a `metadata.csv` (.jsonl, .parquet); a .tar; a folder of .tar or .parquet files; the folder of WavCaps,
            ESC-50 or UrbanSound8K; or a list or a glob pattern of tables or of tars.
        layout: `auto`, or which of these it is: `manifest` is a table of audio and captions; `audiocaps`, `clotho`,
            `wavcaps`, `esc50` and `urbansound8k` are tables as published. `auto` knows them by their columns.
        audio_root: what audio paths in a table are relative to, or where a layout's files are sought; the table's
            folder if None.
        audio_column: the table's column of audio; found by name if None.
        caption_columns: the table's columns of captions; found by name if None.

    Raises:
        DatasetError: there is no such file, it cannot be told what it is, or an argument is of no use with it.
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    opened = _open(path, layout, audio_root, audio_column, caption_columns)
    if (audio_column is not None or caption_columns is not None) and not opened.takes_columns:
        raise DatasetError(
            f"{_shown(path)}: --audio-column and --caption-columns are for a manifest, not {opened.what}"
        )
    if audio_root is not None and not opened.takes_root:
        raise DatasetError(f"{_shown(path)}: --audio-dir is for a table of audio paths, not {opened.what}")
    return opened.source


@dataclass(frozen=True)
class _Opened:
    source: Source
    what: str
    takes_columns: bool = False
    takes_root: bool = False


def _open(
    path: Paths | Sequence[Paths],
    layout: str,
    audio_root: Paths | None,
    audio_column: str | None,
    caption_columns: Sequence[str] | None,
) -> _Opened:
    paths = _expanded(path)
    columns = (audio_column, caption_columns)
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], layout, audio_root, columns)
    if all(file.suffix.lower() == ".tar" for file in paths):
        if layout not in ("auto", "webdataset"):
            raise DatasetError(f"{_shown(path)}: a .tar is read by --layout webdataset, not {layout}")
        return _Opened(TarSource(paths), "a .tar")
    for file in paths:
        if file.suffix.lower() not in TABLE_EXTENSIONS or file.is_dir():
            several = " (several sources are several tables, or several .tar files)" if len(paths) > 1 else ""
            raise DatasetError(
                f"{file}: neither a folder, a .tar, nor one of {', '.join(sorted(TABLE_EXTENSIONS))}{several}"
            )
    return _open_tables(paths, layout, audio_root, columns)


def _open_folder(
    folder: Path, layout: str, audio_root: Paths | None, columns: tuple[str | None, Sequence[str] | None]
) -> _Opened:
    tars = sorted(folder.glob("*.tar"))
    if layout == "webdataset" or (layout == "auto" and tars):
        if not tars:
            raise DatasetError(f"{folder}: holds no .tar file")
        return _Opened(TarSource(tars, folder), "a folder of .tar files")
    if layout == "wavcaps" or (layout == "auto" and wavcaps_folder(folder)):
        return _Opened(WavCaps(folder, audio_root), "WavCaps", takes_root=True)
    table = published_table(folder)
    if table is not None and layout in ("auto", *(known.name for known in LABELED_LAYOUTS)):
        return _open_tables([table], layout, audio_root, columns)
    if layout == "folder":
        return _Opened(FolderSource(folder), "a folder of audio")
    files, passed_over = walk_folder(folder)
    if layout in ("auto", "manifest") and (metadata := table_folders.metadata_tables(folder, files)):
        manifest = Manifest(metadata, audio_root, *columns)
        manifest.name = folder.resolve().name
        rest = table_folders.UnlistedAudio(folder, manifest)
        return _Opened(table_folders.WithRest(manifest, rest), "an AudioFolder", True, True)
    extensions = {os.path.splitext(file)[1].lower() for file in files}
    audio = not extensions.isdisjoint(AUDIO_EXTENSIONS)
    if not audio and (parquet := table_folders.parquet_tables(files)):
        left_out = [*table_folders.left_out_of_shards(folder, parquet, files), *passed_over]
        opened = _open_tables([folder / file for file in parquet], layout, audio_root, columns)
        chain = table_folders.WithRest(opened.source, table_folders.LeftOut(folder, left_out))
        return replace(opened, source=chain) if left_out else opened
    if layout != "auto":
        raise DatasetError(f"{folder}: is a folder; --layout {layout} wants the file that lists its clips")
    tables = ", ".join(str(folder / file) for file in table_folders.other_tables(files)[:5])
    if tables and not (audio and extensions & {".txt", ".json"}):
        without = "its audio has no .txt or .json beside it" if audio else "holds no audio and no .tar"
        raise DatasetError(f"{folder}: {without}; to read a table, give it as SOURCE: {tables}")
    return _Opened(FolderSource(folder), "a folder of audio")


def _open_tables(
    paths: Sequence[Path], layout: str, audio_root: Paths | None, columns: tuple[str | None, Sequence[str] | None]
) -> _Opened:
    chosen = _layout_of(paths) if layout == "auto" and columns == (None, None) else layout
    if chosen in ("folder", "webdataset"):
        raise DatasetError(f"{paths[0]}: is a table; --layout {chosen} wants a folder")
    if len(paths) > 1 and chosen in ("clotho", "wavcaps"):
        what = "the folder of its JSONs" if chosen == "wavcaps" else "one split's table"
        raise DatasetError(f"{', '.join(map(str, paths))}: --layout {chosen} takes one SOURCE, {what}")
    if chosen == "audiocaps":
        return _Opened(AudioCaps(paths, audio_root), "AudioCaps", takes_root=True)
    if chosen == "wavcaps":
        return _Opened(WavCaps(paths[0], audio_root), "WavCaps", takes_root=True)
    if chosen == "clotho":
        return _Opened(Clotho(paths[0], audio_root), "Clotho", takes_root=True)
    if any(chosen == known.name for known in LABELED_LAYOUTS):
        return _Opened(LabeledSource(paths, chosen, audio_root), chosen, takes_root=True)
    return _Opened(Manifest(paths, audio_root, *columns), "a manifest", True, True)


def _layout_of(paths: Sequence[Path]) -> str:
    """`audiocaps`, `clotho`, `wavcaps`, `esc50`, `urbansound8k` or `manifest`, by the fields of the first row."""
    row = first_row(paths[0])
    if is_audiocaps(row):
        return "audiocaps"
    if is_wavcaps(row, paths[0].suffix.lower()):
        return "wavcaps"
    if is_clotho(row):
        return "clotho"
    labelled = labeled_layout(row)
    return labelled.name if labelled and not caption_columns_of(row) else "manifest"


def _expanded(path: Paths | Sequence[Paths]) -> list[Path]:
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    paths: list[Path] = []
    for one in given:
        name = os.fspath(one)
        if os.path.exists(name):
            paths.append(Path(name))
        elif found := sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []:
            paths += map(Path, found)
        else:
            raise DatasetError(f"{name}: {'matches no file' if glob.has_magic(name) else 'does not exist'}")
    if not paths:
        raise DatasetError("no SOURCE; give at least one")
    return paths


def _shown(path: Paths | Sequence[Paths]) -> str:
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else ", ".join(os.fspath(one) for one in path)
