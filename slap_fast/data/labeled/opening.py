"""Opens a folder or table of labeled audio, detecting its layout by its content."""

from __future__ import annotations

from pathlib import Path

from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME, DatasetError
from slap_fast.data.labeled import folders, stored, tagging
from slap_fast.data.labeled.labeled_set import LabeledSet, LabelError, numbered
from slap_fast.data.labeled.tables import published_table, table_files
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.data.prepare.table_audio import find_audio_column
from slap_fast.data.prepare.table_rows import TABLE_EXTENSIONS, column_names


def open_labeled(path: str | Path) -> LabeledSet:
    """Open labeled audio.

    Args:
        path: a folder with one subfolder per class, searched recursively; the folder of ESC-50 or UrbanSound8K, or its
            audio folder; that of CREMA-D, RAVDESS, GTZAN, FSD50K or AudioSet; a table with a column of files (`file`,
            `filename` or `path`, relative to the table) and one of classes (`class`, `label` or `category`; or
            `labels`, with several); Parquet tables with audio inside; or a dataset that `slap-fast prepare` wrote.

    Raises:
        FileNotFoundError: `path` does not exist.
        LabelError: no class, fewer than two classes, a row without a file or class, a file of two classes, or folds,
            splits or numbers instead of class names.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or CSV")
    try:
        return _open_folder(path) if path.is_dir() else _open_table(path)
    except DatasetError as error:
        raise LabelError(str(error)) from error


def _open_folder(folder: Path) -> LabeledSet:
    if (folder / INFO_NAME).is_file() and (folder / INDEX_NAME).is_file():
        return stored.prepared_dataset(folder)
    if tagging.is_fsd50k(folder):
        return tagging.fsd50k(folder)
    if tagging.is_audioset(folder):
        return tagging.audioset(folder)
    if (table := published_table(folder)) is not None:
        return _open_table(table)
    for inside in ("genres_original", "genres"):
        if (folder / inside).is_dir() and folders.is_gtzan(folder / inside):
            return folders.class_folders(folder / inside)
    for by_name in (folders.crema_d, folders.ravdess):
        if (found := by_name(folder)) is not None:
            return found
    files, _ = walk_folder(folder)
    parquet = [folder / file for file in files if file.lower().endswith(".parquet")]
    if parquet and not folders.has_audio(files):
        return stored.parquet_tables(folder, parquet)
    return folders.class_folders(folder)


def _open_table(table: Path) -> LabeledSet:
    if table.suffix.lower() not in TABLE_EXTENSIONS:
        raise LabelError(f"{table}: neither a folder nor one of {', '.join(sorted(TABLE_EXTENSIONS))}")
    if table.suffix.lower() == ".parquet" and find_audio_column(column_names(table)) == "audio":
        return stored.parquet_tables(table, [table])
    name, files, multi_label = table_files(table)
    return numbered(table, name, files, multi_label=multi_label)
