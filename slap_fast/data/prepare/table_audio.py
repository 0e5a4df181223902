"""Audio cells of tables: finds the audio column of a table and the audio of a cell (a path or bytes)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import is_missing
from slap_fast.data.prepare.source import BytesAudio, FileAudio, Rejection
from slap_fast.data.prepare.table_rows import first_row
from slap_fast.data.prepare.table_source import Identity

_AUDIO_COLUMNS = (
    *("audio", "audio_path", "audio_file", "audio_filepath", "audio_filename", "audio_file_name", "path", "filepath"),
    *("file_path", "file", "filename", "file_name", "fname", "wav", "wav_path", "wav_file"),
)
_SHOWN = 200  # characters of a cell in a message


@dataclass(frozen=True)
class CellAudio:
    """The audio of a cell, with the identity, name and origin of its clip."""

    identity: Identity
    name: str
    audio: FileAudio | BytesAudio
    origin: str


def audio_of_cell(origin: str, cell: Any, locate: Callable[[str], Path]) -> CellAudio | Rejection:
    """The audio of a cell: a path, the bytes of a file, or Hugging Face's `{"bytes", "path"}`."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    file = cell.get("path") if isinstance(cell, dict) else cell
    if isinstance(data, bytes):
        name = file if isinstance(file, str) else ""
        label = name or origin
        return CellAudio((name, data), os.path.splitext(label)[0], BytesAudio(data), f"{origin} ({label})")
    if isinstance(cell, dict) and "array" in cell and not file:
        detail = "the audio cell contains decoded samples; write the table with the bytes of audio files instead"
        return Rejection(origin, "malformed_row", detail)
    if not isinstance(file, str) or is_missing(file):
        return Rejection(origin, "malformed_row", f"no audio path ({repr(file)[:_SHOWN]})")
    if "\0" in file:
        return Rejection(origin, "malformed_row", "NUL byte in the audio path")
    path = locate(file)
    if file != file.strip() and not os.path.exists(path):
        file = file.strip()
        path = locate(file)
    return CellAudio((str(path),), os.path.splitext(file)[0], FileAudio(path), file)


def default_audio_root(table: Path) -> Path:
    """The folder that audio paths are relative to: that of the table, or of its target if it is a link without audio.

    The Hugging Face cache links both the table and the audio files to their storage, so that only the links are in one
    folder.
    """
    beside = table.absolute().parent
    if not table.is_symlink():
        return beside
    row = first_row(table)
    cell = row.get(find_audio_column(row) or "")
    file = cell.get("path") if isinstance(cell, dict) else cell
    found = isinstance(file, str) and os.path.exists(beside / file)
    return beside if found else table.resolve().parent


def find_audio_column(names: Iterable[str]) -> str | None:
    """The column (or JSON field) of audio paths, by its name."""
    by_name = {str(name).strip().lower(): name for name in reversed(list(names))}
    return next((by_name[name] for name in _AUDIO_COLUMNS if name in by_name), None)
