"""Labeled layouts: classification datasets as published, captioned with their class names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slap_fast.data.labeled.tables import LABELED_LAYOUTS, labeled_rows
from slap_fast.data.prepare.source import ClipItem, FileAudio, Rejection
from slap_fast.data.prepare.table_audio import CellAudio, audio_of_cell
from slap_fast.data.prepare.table_rows import require_columns
from slap_fast.data.prepare.table_source import Identity, TableSource, describe_tables

CAPTION_TEMPLATE = "the sound of {}"


class LabeledSource(TableSource):
    """A classification dataset; the caption of a clip is its class name in CAPTION_TEMPLATE.

    If the tables contain audio, as Parquet files from the Hugging Face hub do, that audio is used.
    """

    def __init__(self, paths: Sequence[Path], layout: str, audio_root: str | os.PathLike[str] | None = None) -> None:
        self.name = layout
        self._paths = list(paths)
        self._root = None if audio_root is None else Path(audio_root)
        self._layout = next(known for known in LABELED_LAYOUTS if known.name == layout)
        require_columns(self._paths, self._layout.columns, layout)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self._layout.name,
            **describe_tables(self._paths),
            "audio_root": None if self._root is None else str(self._root.resolve()),
            "caption": CAPTION_TEMPLATE,
        }

    def rows(self) -> Iterator[tuple[Identity, ClipItem | Rejection]]:
        for origin, found in labeled_rows(self._paths, self._root):
            if isinstance(found, Rejection):
                yield (), found
                continue
            path, label, row = found
            file = str(row[self._layout.file_column])
            cell = row.get("audio")
            own = audio_of_cell(origin, cell, path.parent.joinpath) if isinstance(cell, (dict, bytes)) else None
            metadata = {name: value for name, value in row.items() if name != "audio"}
            audio = own.audio if isinstance(own, CellAudio) else FileAudio(path)
            caption = CAPTION_TEMPLATE.replace("{}", label)
            identity = own.identity if isinstance(own, CellAudio) else (str(path),)
            yield identity, ClipItem(os.path.splitext(file)[0], [caption], audio, f"{origin} {file}", metadata)
