"""Source detection: opens a path as a folder, manifest, WebDataset tar or published dataset."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from slap_fast.audio.formats import AUDIO_EXTENSIONS
from slap_fast.data.format.captions import find_caption_columns
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled.tables import LABELED_LAYOUTS, labeled_layout, published_table
from slap_fast.data.prepare import table_folders
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.folder_source import FolderSource
from slap_fast.data.prepare.labeled_layouts import LabeledSource
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
    """Opens captioned audio, detecting its layout.

    Args:
        path: a table (.csv, .tsv, .json, .jsonl, .ndjson, .parquet); a folder of audio with sidecar .txt or .json files
            or a `metadata.csv` (.jsonl, .parquet); a .tar; a folder of .tar or .parquet files; the folder of WavCaps,
            ESC-50 or UrbanSound8K; or a list or a glob pattern of tables or tars.
        layout: `auto` or a layout: `manifest` is a table of audio and captions; `audiocaps`, `clotho`, `wavcaps`,
            `esc50` and `urbansound8k` are tables as published. `auto` detects them by their columns.
        audio_root: folder that audio paths in a table are relative to, or where the files of a layout are searched;
            the folder of the table if None.
        audio_column: the audio column of the table; found by name if None.
        caption_columns: the caption columns of the table; found by name if None.

    Raises:
        DatasetError: there is no such file, its layout cannot be detected, or an argument does not apply to it.
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    options = _Options(layout, audio_root, audio_column, caption_columns)
    paths = _expanded(path)
    opened = _open(paths, options)
    shown = ", ".join(os.fspath(one) for one in ([path] if isinstance(path, (str, os.PathLike)) else path))
    if options.columns_given and not opened.takes_columns:
        raise DatasetError(f"{shown}: --audio-column and --caption-columns are for a manifest, not {opened.what}")
    if audio_root is not None and not opened.takes_root:
        raise DatasetError(f"{shown}: --audio-dir is for a table of audio paths, not {opened.what}")
    return opened.source


class _Options(NamedTuple):
    layout: str
    audio_root: Paths | None
    audio_column: str | None
    caption_columns: Sequence[str] | None

    @property
    def columns_given(self) -> bool:
        return self.audio_column is not None or self.caption_columns is not None

    def manifest(self, tables: Sequence[Path]) -> Manifest:
        return Manifest(tables, self.audio_root, self.audio_column, self.caption_columns)


class _Opened(NamedTuple):
    source: Source
    what: str
    takes_columns: bool = False
    takes_root: bool = False


def _open(paths: list[Path], options: _Options) -> _Opened:
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], options)
    if all(file.suffix.lower() == ".tar" for file in paths):
        if options.layout not in ("auto", "webdataset"):
            shown = ", ".join(map(str, paths))
            raise DatasetError(f"{shown}: a .tar is read by --layout webdataset, not {options.layout}")
        return _Opened(TarSource(paths), "a .tar")
    for file in paths:
        if file.suffix.lower() not in TABLE_EXTENSIONS or file.is_dir():
            several = " (several sources are several tables, or several .tar files)" if len(paths) > 1 else ""
            raise DatasetError(
                f"{file}: neither a folder, a .tar, nor one of {', '.join(sorted(TABLE_EXTENSIONS))}{several}"
            )
    return _open_tables(paths, options)


def _open_folder(folder: Path, options: _Options) -> _Opened:
    layout = options.layout
    tars = sorted(folder.glob("*.tar"))
    if layout == "webdataset" or (layout == "auto" and tars):
        if not tars:
            raise DatasetError(f"{folder}: holds no .tar file")
        return _Opened(TarSource(tars, folder), "a folder of .tar files")
    if layout == "wavcaps" or (layout == "auto" and wavcaps_folder(folder)):
        return _Opened(WavCaps(folder, options.audio_root), "WavCaps", takes_root=True)
    table = published_table(folder)
    if table is not None and layout in ("auto", *(known.name for known in LABELED_LAYOUTS)):
        return _open_tables([table], options)
    if layout == "folder":
        return _Opened(FolderSource(folder), "a folder of audio")
    files, passed_over = walk_folder(folder)
    if layout in ("auto", "manifest") and (metadata := table_folders.metadata_tables(folder, files)):
        manifest = options.manifest(metadata)
        manifest.name = folder.resolve().name
        unlisted = table_folders.UnlistedAudio(folder, manifest)
        return _Opened(table_folders.ChainedSource(manifest, unlisted), "an AudioFolder", True, True)
    extensions = {os.path.splitext(file)[1].lower() for file in files}
    audio = not extensions.isdisjoint(AUDIO_EXTENSIONS)
    if not audio and (parquet := table_folders.parquet_tables(files)):
        left_out = [*table_folders.unread_files(folder, parquet, files), *passed_over]
        opened = _open_tables([folder / file for file in parquet], options)
        chain = table_folders.ChainedSource(opened.source, table_folders.RejectedFiles(folder, left_out))
        return opened._replace(source=chain) if left_out else opened
    if layout != "auto":
        raise DatasetError(f"{folder}: is a folder; --layout {layout} needs the file that lists its clips")
    tables = ", ".join(str(folder / file) for file in table_folders.other_tables(files)[:5])
    if tables and not (audio and extensions & {".txt", ".json"}):
        without = "its audio has no .txt or .json beside it" if audio else "holds no audio and no .tar"
        raise DatasetError(f"{folder}: {without}; to read a table, give it as SOURCE: {tables}")
    return _Opened(FolderSource(folder), "a folder of audio")


def _open_tables(paths: Sequence[Path], options: _Options) -> _Opened:
    root = options.audio_root
    layout = _layout_of(paths) if options.layout == "auto" and not options.columns_given else options.layout
    if layout in ("folder", "webdataset"):
        raise DatasetError(f"{paths[0]}: is a table; --layout {layout} needs a folder")
    if len(paths) > 1 and layout in ("clotho", "wavcaps"):
        what = "the folder of its JSONs" if layout == "wavcaps" else "one split's table"
        raise DatasetError(f"{', '.join(map(str, paths))}: --layout {layout} takes one SOURCE, {what}")
    if layout == "audiocaps":
        return _Opened(AudioCaps(paths, root), "AudioCaps", takes_root=True)
    if layout == "wavcaps":
        return _Opened(WavCaps(paths[0], root), "WavCaps", takes_root=True)
    if layout == "clotho":
        return _Opened(Clotho(paths[0], root), "Clotho", takes_root=True)
    if any(layout == known.name for known in LABELED_LAYOUTS):
        return _Opened(LabeledSource(paths, layout, root), layout, takes_root=True)
    return _Opened(options.manifest(paths), "a manifest", True, True)


def _layout_of(paths: Sequence[Path]) -> str:
    """`audiocaps`, `clotho`, `wavcaps`, `esc50`, `urbansound8k` or `manifest`, by the columns of the first row."""
    row = first_row(paths[0])
    if is_audiocaps(row):
        return "audiocaps"
    if is_wavcaps(row, paths[0].suffix.lower()):
        return "wavcaps"
    if is_clotho(row):
        return "clotho"
    labeled = labeled_layout(row)
    return labeled.name if labeled and not find_caption_columns(row) else "manifest"


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
