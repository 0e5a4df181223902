"""Finds public datasets below a folder by their content: as published, or as `slap-fast prepare` wrote them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from slap_fast.data.format.dataset_files import INDEX_NAME, INFO_NAME
from slap_fast.data.labeled.folders import CREMA_D, RAVDESS, is_gtzan
from slap_fast.data.labeled.tables import LABELED_LAYOUTS
from slap_fast.data.prepare.layouts import split_tables

_DEPTH = 4  # levels of folders
_SPLITS = {"audiocaps": "test", "clotho": "evaluation"}
# Of RAVDESS, the audio of speech.
_BY_NAME = {"crema_d": CREMA_D, "ravdess": re.compile(f"(?=03-01-){RAVDESS.pattern}")}
_PREPARED_LABELED = ("esc50", "urbansound8k", "crema_d", "ravdess", "gtzan")
_SAMPLED = 50  # file names of a folder that decide what it is


@dataclass
class FoundDataset:
    """Paths of one dataset.

    Attributes:
        name: `esc50`, `urbansound8k`, `crema_d`, `ravdess`, `gtzan`, `audiocaps` or `clotho`.
        paths: a folder of `open_labeled` (several for RAVDESS, one per actor), a table, or a prepared dataset.
        prepared: whether it is a dataset that `prepare` wrote.
        others: further copies, which are not used.
    """

    name: str
    paths: list[Path]
    prepared: bool = False
    others: list[Path] = field(default_factory=list)


def find_datasets(root: Path) -> dict[str, FoundDataset]:
    """The datasets below `root`, up to four levels down, by name. Files as published come before prepared datasets.

    Raises:
        NotADirectoryError: `root` is no folder.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: no such folder; give the folder that holds the datasets")
    found: dict[str, FoundDataset] = {}
    for parent, folders, files in os.walk(root, followlinks=True):
        folder = Path(parent)
        folders.sort()
        if len(folder.relative_to(root).parts) >= _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name, path, prepared in _datasets_in(folder, files):
            _add(found, name, path, prepared)
            if name not in _SPLITS or prepared:
                # Its subfolders are parts of it.
                folders.clear()
    return found


def _add(found: dict[str, FoundDataset], name: str, path: Path, prepared: bool) -> None:
    own = found.setdefault(name, FoundDataset(name, [], prepared))
    if not own.paths or (own.prepared and not prepared):
        own.others += own.paths
        own.paths, own.prepared = [path], prepared
    elif name == "ravdess" and not prepared:
        own.paths.append(path)
    else:
        own.others.append(path)


def _datasets_in(folder: Path, files: list[str]) -> list[tuple[str, Path, bool]]:
    """`(name, path, whether it is prepared)` of the datasets that this folder, not one below it, holds."""
    if INFO_NAME in files and INDEX_NAME in files:
        name = _name_of_prepared(folder / INFO_NAME)
        return [] if name is None else [(name, folder, True)]
    for layout in LABELED_LAYOUTS:
        if (folder / layout.table).is_file():
            return [(layout.name, folder, False)]
    if is_gtzan(folder):
        return [("gtzan", folder, False)]
    audio = [os.path.splitext(file)[0] for file in sorted(files) if file.lower().endswith((".wav", ".flac"))][:_SAMPLED]
    for name, pattern in _BY_NAME.items():
        if audio and 2 * sum(pattern.fullmatch(stem) is not None for stem in audio) > len(audio):
            return [(name, folder, False)]
    found = []
    for name, split in _SPLITS.items():
        for table in _own_tables(folder, files, name, split):
            found.append((name, table, False))
    return found


def _own_tables(folder: Path, files: list[str], name: str, split: str) -> list[Path]:
    if not any(file.lower().endswith(".csv") for file in files):
        return []
    return [table for table in split_tables(folder, name).get(split, []) if table.parent == folder]


def _name_of_prepared(info: Path) -> str | None:
    """The dataset of a prepared folder, by the name and the source that are recorded in it."""
    try:
        record = json.loads(info.read_text(encoding="utf-8"))
        source = record.get("prepared_with", {}).get("source", {})
        words = " ".join(str(part) for part in (record.get("name"), source.get("kind"), info.parent.name)).lower()
        tables = source.get("path")
    except (OSError, ValueError, AttributeError):
        return None
    stems = " ".join(Path(str(table)).stem for table in (tables if isinstance(tables, list) else [tables]))
    for name, split in _SPLITS.items():
        if name in words:
            return name if re.search(rf"{split}|{split[:4]}\b", f"{words} {stems}".lower()) else None
    plain = re.sub(r"[^a-z0-9]", "", words)
    return next((name for name in _PREPARED_LABELED if name.replace("_", "") in plain), None)
