"""Source detection: opens a path as a folder, manifest, WebDataset tar, published dataset or dataset of the hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.captions import find_caption_columns
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled.tables import LABELED_LAYOUTS, labeled_layout, published_table
from slap_fast.data.labeled.tagging import AUDIOSET_CLASSES, FSD50K_LABELS, is_audioset, is_fsd50k
from slap_fast.data.prepare import table_folders
from slap_fast.data.prepare.exclusions import ExcludingSource, Exclusions
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.folder_source import FolderSource
from slap_fast.data.prepare.label_captions import CAPTION_TEMPLATE, check_template
from slap_fast.data.prepare.labeled_layouts import SEGMENTS, LabeledSource, LabeledTable, folder_of_table
from slap_fast.data.prepare.layouts import AudioCaps, Clotho, is_audiocaps, is_clotho, split_tables
from slap_fast.data.prepare.macs import MACS_FILE, Macs
from slap_fast.data.prepare.manifest import Manifest
from slap_fast.data.prepare.source import Source
from slap_fast.data.prepare.table_rows import TABLE_EXTENSIONS, first_row
from slap_fast.data.prepare.tar_contents import is_tar, tars_in
from slap_fast.data.prepare.tar_source import TarSource
from slap_fast.data.prepare.wavcaps import WavCaps, is_wavcaps, wavcaps_folder

Captioned = Literal["auto", "manifest", "folder", "webdataset", "audiocaps", "clotho", "wavcaps", "macs"]
Labeled = Literal["esc50", "urbansound8k", "fsd50k", "audioset", "labeled"]
Layout = Captioned | Labeled
LABELED: tuple[str, ...] = get_args(Labeled)
LAYOUTS: tuple[str, ...] = (*get_args(Captioned), *LABELED)
Paths = str | os.PathLike[str]
_LABEL_TABLES = {"fsd50k": f"{FSD50K_LABELS}/dev.csv", "audioset": f"{AUDIOSET_CLASSES}, or eval{SEGMENTS},"}


def open_source(
    path: Paths | Sequence[Paths],
    *,
    layout: Layout = "auto",
    audio_root: Paths | None = None,
    audio_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
    split: str | None = None,
    caption_template: str | None = None,
    exclude: Sequence[Paths] = (),
) -> Source:
    """Opens captioned audio, detecting its layout.

    Args:
        path: a table (.csv, .tsv, .json, .jsonl, .ndjson, .parquet, .arrow); a folder of audio with sidecar .txt or
            .json files or a `metadata.csv` (.jsonl, .parquet); a .tar; a folder of .tar or .parquet files, or one that
            `datasets` saved; the folder of a published dataset; a list or a glob pattern of tables or tars; or a
            dataset of the Hugging Face hub, `hf://owner/name[@revision][/config]`.
        layout: `auto` or a layout: `manifest` is a table of audio and captions; `labeled` is whatever `open_labeled`
            reads, captioned with its class names; the others are datasets as published. `auto` detects all of these but
            `labeled`.
        audio_root: folder that audio paths in a table are relative to, or where the files of a layout are searched;
            the folder of the table if None.
        audio_column: the audio column of the table; found by name if None.
        caption_columns: the caption columns of the table; found by name if None.
        split: the split of a source that has several.
        caption_template: makes captions from the class names of a labeled source, with one `{}`; None:
            `CAPTION_TEMPLATE` for the published ones, and no captions for others.
        exclude: files with the ids of clips to leave out; see `Exclusions`.

    Raises:
        DatasetError: there is no such file, its layout cannot be detected, or an argument does not apply to it.
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if caption_template is not None:
        check_template(caption_template)
    options = _Options(layout, audio_root, audio_column, caption_columns, split, caption_template)
    exclusions = Exclusions([Path(file) for file in exclude])
    repository = _hub_path(path)
    opened = _open(_expanded(path), options) if repository is None else _open_hub(repository, options)
    shown = ", ".join(os.fspath(one) for one in ([path] if isinstance(path, (str, os.PathLike)) else path))
    if options.columns_given and not opened.takes_columns:
        raise DatasetError(f"{shown}: --audio-column and --caption-columns are for a manifest, not {opened.what}")
    if audio_root is not None and not opened.takes_root:
        raise DatasetError(f"{shown}: --audio-dir is for a table of audio paths, not {opened.what}")
    if split is not None and not opened.takes_split:
        raise DatasetError(f"{shown}: --split {split} is for a source with several splits, not {opened.what}")
    if caption_template is not None and not opened.takes_template:
        raise DatasetError(f"{shown}: --caption-template is for audio with class labels, not {opened.what}")
    return ExcludingSource(opened.source, exclusions) if exclude else opened.source


class _Options(NamedTuple):
    layout: str
    audio_root: Paths | None
    audio_column: str | None
    caption_columns: Sequence[str] | None
    split: str | None
    caption_template: str | None

    @property
    def template(self) -> str:
        return self.caption_template or CAPTION_TEMPLATE

    @property
    def columns_given(self) -> bool:
        return self.audio_column is not None or self.caption_columns is not None

    def manifest(self, tables: Sequence[Path]) -> Manifest:
        if self.caption_template is not None and self.caption_columns is not None:
            raise DatasetError("--caption-template makes captions of class names; leave out --caption-columns")
        return Manifest(tables, self.audio_root, self.audio_column, self.caption_columns, self.caption_template)


class _Opened(NamedTuple):
    source: Source
    what: str
    takes_columns: bool = False
    takes_root: bool = False
    takes_split: bool = False
    takes_template: bool = False


def _open(paths: list[Path], options: _Options) -> _Opened:
    if len(paths) == 1 and paths[0].is_dir():
        return _open_folder(paths[0], options)
    if len(paths) == 1 and (options.layout == "macs" or paths[0].name == MACS_FILE):
        return _Opened(Macs(paths[0], options.audio_root), "MACS", takes_root=True)
    if all(map(is_tar, paths)):
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
    tars = tars_in(folder)
    if layout == "webdataset" or (layout == "auto" and tars):
        if not tars:
            raise DatasetError(f"{folder}: holds no .tar file")
        return _Opened(TarSource(tars, folder), "a folder of .tar files")
    if layout == "wavcaps" or (layout == "auto" and wavcaps_folder(folder)):
        return _Opened(WavCaps(folder, options.audio_root), "WavCaps", takes_root=True)
    if layout == "macs" or (layout == "auto" and (folder / MACS_FILE).is_file()):
        return _Opened(Macs(folder / MACS_FILE, options.audio_root or folder), "MACS", takes_root=True)
    table = published_table(folder)
    if table is not None and layout in ("auto", *(known.name for known in LABELED_LAYOUTS)):
        return _open_tables([table], options)
    tagged = {"fsd50k": is_fsd50k, "audioset": is_audioset}
    if layout in ("labeled", *tagged) or (layout == "auto" and any(fits(folder) for fits in tagged.values())):
        if layout in tagged and not tagged[layout](folder):
            raise DatasetError(f"{folder}: is not the folder of {layout}: {_LABEL_TABLES[layout]} is not there")
        return _open_labeled(folder, options)
    if layout == "auto":
        for segments in folder.glob(f"*{SEGMENTS}"):
            folder_of_table(segments)  # raises for AudioSet without its classes
    if layout != "folder" and (saved := table_folders.saved_tables(folder, options.split)):
        return _open_tables(saved, options)._replace(takes_split=True)
    if layout in ("auto", "audiocaps", "clotho") and (of_splits := split_tables(folder, layout)):
        return _open_split(folder, of_splits, options)
    if options.split in os.listdir(folder) and (folder / str(options.split)).is_dir():
        return _open_folder(folder / str(options.split), options._replace(split=None))._replace(takes_split=True)
    if layout == "folder":
        return _Opened(FolderSource(folder), "a folder of audio")
    files, passed_over = walk_folder(folder)
    if layout in ("auto", "manifest") and (metadata := table_folders.metadata_tables(folder, files)):
        manifest = options.manifest(metadata)
        manifest.name = folder.resolve().name
        unlisted = table_folders.UnlistedAudio(folder, manifest)
        chained = table_folders.ChainedSource(manifest, unlisted)
        return _Opened(chained, "an AudioFolder", takes_columns=True, takes_root=True, takes_template=True)
    extensions = {os.path.splitext(file)[1].lower() for file in files}
    audio = not extensions.isdisjoint(AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS)
    if not audio and (tables := table_folders.shard_tables(files)):
        if options.split is not None:
            chosen = table_folders.of_split(folder, tables, options.split)
            files = [file for file in files if file in chosen or file not in tables]
            tables = chosen
        left_out = [*table_folders.unread_files(folder, tables, files), *passed_over]
        opened = _open_tables([folder / file for file in tables], options)._replace(takes_split=True)
        chain = table_folders.ChainedSource(opened.source, table_folders.RejectedFiles(folder, left_out))
        return opened._replace(source=chain) if left_out else opened
    if layout == "auto" and options.caption_template is not None:
        return _open_labeled(folder, options)
    if layout != "auto":
        raise DatasetError(f"{folder}: is a folder; --layout {layout} needs the file that lists its clips")
    others = ", ".join(str(folder / file) for file in table_folders.other_tables(files)[:5])
    if others and not (audio and extensions & {".txt", ".json"}):
        without = "its audio has no .txt or .json beside it" if audio else "holds no audio and no .tar"
        raise DatasetError(f"{folder}: {without}; to read a table, give it as SOURCE: {others}")
    return _Opened(FolderSource(folder), "a folder of audio")


def _open_labeled(path: Path, options: _Options) -> _Opened:
    source = LabeledSource(path, options.split, options.template)
    return _Opened(source, "audio with class labels", takes_split=True, takes_template=True)


def _open_split(folder: Path, tables: dict[str, list[Path]], options: _Options) -> _Opened:
    """The table of a split, of a folder with one table for each split."""
    split = options.split or (next(iter(tables)) if len(tables) == 1 else None)
    if split not in tables:
        asked = f"has no split {split!r}" if split else "has several splits"
        raise DatasetError(f"{folder}: {asked}; choose one with --split: {', '.join(tables)}")
    if len(tables[split]) > 1:
        raise DatasetError(
            f"{folder}: has several tables of that split; give one: {', '.join(map(str, tables[split]))}"
        )
    if options.audio_root is None and is_audiocaps(first_row(tables[split][0])):
        options = options._replace(audio_root=folder)
    return _open_tables(tables[split], options)._replace(takes_split=True)


def _open_hub(repository: str, options: _Options) -> _Opened:
    from slap_fast.data.prepare.hub_source import HubSource

    if options.layout not in ("auto", "manifest"):
        raise DatasetError(f"{repository}: a dataset of the hub is read by its columns; leave out --layout")
    source = HubSource(
        repository,
        split=options.split,
        audio_column=options.audio_column,
        caption_columns=options.caption_columns,
        caption_template=options.caption_template,
    )
    return _Opened(source, "a dataset of the hub", takes_columns=True, takes_split=True, takes_template=True)


def _hub_path(path: Paths | Sequence[Paths]) -> str | None:
    """The `hf://` path among those given; it must be the only one."""
    given = [os.fspath(one) for one in ([path] if isinstance(path, (str, os.PathLike)) else path)]
    found = [one for one in given if one.startswith("hf://")]
    if found and len(given) > 1:
        raise DatasetError(f"{', '.join(given)}: a dataset of the hub is the only SOURCE; prepare each separately")
    return found[0] if found else None


def _open_tables(paths: Sequence[Path], options: _Options) -> _Opened:
    root = options.audio_root
    layout = _layout_of(paths) if options.layout == "auto" and not options.columns_given else options.layout
    if layout in ("folder", "webdataset"):
        raise DatasetError(f"{paths[0]}: is a table; --layout {layout} needs a folder")
    if layout in ("fsd50k", "audioset"):
        folder, split = folder_of_table(paths[0])
        if len(paths) > 1 or options.split not in (None, split):
            raise DatasetError(f"{paths[0]}: give the folder {folder} as SOURCE, with --split")
        return _open_labeled(folder, options._replace(split=split))
    if layout == "labeled":
        if len(paths) > 1:
            raise DatasetError(f"{', '.join(map(str, paths))}: --layout labeled takes one table, or a folder")
        return _open_labeled(paths[0], options)
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
        return _Opened(
            LabeledTable(paths, layout, root, options.template), layout, takes_root=True, takes_template=True
        )
    return _Opened(options.manifest(paths), "a manifest", takes_columns=True, takes_root=True, takes_template=True)


def _layout_of(paths: Sequence[Path]) -> str:
    """The layout of published tables by the columns of the first row (AudioSet: by its name), or `manifest`."""
    if folder_of_table(paths[0])[1]:
        return "audioset" if paths[0].name.endswith(SEGMENTS) else "fsd50k"
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
