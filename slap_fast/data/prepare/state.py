"""Prepare state: lets an interrupted `prepare` resume after the last committed shard.

`.prepare/` contains `arguments.json` and, per shard, its index records, its part of the report and the running totals.
These are on disk before the tar is renamed to its final name. A shard counts as committed if its tar exists and matches
them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.data.format.dataset_files import (
    INDEX_NAME,
    REPORT_NAME,
    SAMPLE_RATE,
    STATE_FOLDER,
    DatasetError,
    json_line,
    read_pieces,
    write_atomically,
    write_index,
    write_json,
    writing,
)
from slap_fast.data.format.shard_writer import ShardWriter

_SHOWN = 200  # characters of an argument in a message
_FLAGS = {
    "name": "--name",
    "max_shard_bytes": "--shard-megabytes, in bytes",
    "min_duration": "--min-duration",
    "max_duration": "--max-duration",
    "vocab_size": "--vocab-size",
    "part": "--part",
    "parts": "--merge, number of parts",
    "source.kind": "what SOURCE is (--layout)",
    "source.path": "SOURCE",
    "source.sha256": "the content of SOURCE (SHA-256)",
    "source.files": "the files of SOURCE (SHA-256 of their names)",
    "source.audio_root": "--audio-dir",
    "source.audio_column": "--audio-column",
    "source.caption_columns": "--caption-columns",
    "source.caption": "--caption-template",
    "source.split": "--split",
    "source.exclude": "--exclude (SHA-256 of the files)",
    "source.revision": "the commit of SOURCE (pin it as hf://owner/name@COMMIT)",
}
"""The command-line names of the stored arguments."""


@dataclass
class Totals:
    """Running totals.

    Attributes:
        consumed: items of the source processed so far.
        captions: number of captions in the shards.
        rejected: number of items left out, by reason.
        noted: number of clips kept but reported, by reason.
        shard: `{name, bytes, clips, seconds}` of the last shard.
    """

    consumed: int = 0
    captions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    shard: dict[str, Any] = field(default_factory=dict)


class PrepareState:
    """The committed part of a dataset folder; all additions to it go through this class.

    Attributes:
        totals: up to the last item processed, committed or not.
        shards: `{name, bytes, clips, seconds}` of the committed shards.
        spill: folder for the temporary files of large clips.
    """

    def __init__(self, folder: Path, arguments: dict[str, Any]) -> None:
        self.folder = folder
        self.shards: list[dict[str, Any]] = []
        self.totals = Totals()
        self._state_folder = folder / STATE_FOLDER
        self.spill = self._state_folder / "spill"
        self._check_or_store(arguments)
        self._find_committed()
        self._remove_uncommitted()
        self._pending = _ReportPart(self._state_folder / "pending.jsonl")

    def new_shard(self) -> ShardWriter:
        return ShardWriter(self.folder / shard_name(len(self.shards)), len(self.shards))

    def reject(self, source: str, reason: str, detail: str) -> None:
        """Counts and reports an item that is left out."""
        self.totals.rejected[reason] += 1
        self._pending.append({"source": source, "kept": False, "reason": reason, "detail": detail})

    def note(self, source: str, reason: str, detail: str) -> None:
        """Counts and reports a clip that is kept."""
        self.totals.noted[reason] += 1
        self._pending.append({"source": source, "kept": True, "reason": reason, "detail": detail})

    def commit(self, shard: ShardWriter) -> None:
        """Commits a shard with the state of all items processed so far."""
        base = self._state_folder / shard.path.stem
        size = shard.size
        records = shard.seal()
        entry = {"name": shard.path.name, "bytes": size, "clips": shard.clips, "seconds": shard.samples / SAMPLE_RATE}
        self.totals.shard = entry
        write_index(base.with_suffix(".npy"), [records], len(records))
        write_json(base.with_suffix(".json"), vars(self.totals))
        self._pending.rename(base.with_suffix(".jsonl"))
        shard.commit()
        self.shards.append(entry)
        self._pending = _ReportPart(self._state_folder / "pending.jsonl")

    def index_parts(self) -> Iterator[np.ndarray]:
        """`[n]` INDEX_DTYPE of each shard."""
        for number in range(len(self.shards)):
            yield np.load(self._part(number, ".npy"))

    def write_report(self) -> None:
        """Writes `report.jsonl`: the parts of all shards, and the entries after the last one."""
        self._pending.close()
        parts = [self._part(number, ".jsonl") for number in range(len(self.shards))]
        pieces = chain.from_iterable(map(read_pieces, [*parts, self._pending.path]))
        write_atomically(self.folder / REPORT_NAME, pieces)

    def delete(self) -> None:
        """Removes `.prepare/`: the dataset is finished, or there is nothing to resume."""
        self._pending.close()
        shutil.rmtree(self._state_folder, ignore_errors=True)

    def close(self) -> None:
        self._pending.close()

    def _part(self, number: int, suffix: str) -> Path:
        return (self._state_folder / shard_name(number)).with_suffix(suffix)

    def _check_or_store(self, arguments: dict[str, Any]) -> None:
        path = self._state_folder / "arguments.json"
        if path.exists():
            check_arguments(self.folder, json.loads(path.read_bytes()), arguments)
            return
        if (self.folder / INDEX_NAME).exists() or any(self.folder.glob("*.tar")):
            raise DatasetError(
                f"{self.folder}: contains tars or an index that are not from an unfinished `slap-fast prepare`; choose "
                "an empty folder, or, if the tars contain 16 kHz mono FLAC, run `slap-fast prepare --reindex` on it"
            )
        with writing(self._state_folder):
            self._state_folder.mkdir(exist_ok=True)
        write_json(path, arguments)

    def _find_committed(self) -> None:
        while True:
            number = len(self.shards)
            tar = self.folder / shard_name(number)
            try:
                totals = Totals(**json.loads(self._part(number, ".json").read_bytes()))
                whole = tar.stat().st_size == totals.shard["bytes"]
                whole = whole and self._part(number, ".npy").exists() and self._part(number, ".jsonl").exists()
            except FileNotFoundError:
                return
            if not whole:
                return
            totals.rejected, totals.noted = Counter(totals.rejected), Counter(totals.noted)
            self.totals = totals
            self.shards.append(totals.shard)

    def _remove_uncommitted(self) -> None:
        for path in [*self.folder.glob("shard-*.tar"), *self.folder.glob(".*.tmp")]:
            if path.name.startswith(".") or path.name >= shard_name(len(self.shards)):
                path.unlink()
        shutil.rmtree(self.spill, ignore_errors=True)
        with writing(self.spill):
            self.spill.mkdir()


def check_arguments(folder: Path, stored: Any, arguments: dict[str, Any]) -> None:
    """Raises DatasetError if `folder` was prepared with other arguments."""
    if stored == arguments:
        return
    differing = shown_differences(stored if isinstance(stored, dict) else {}, arguments, "then", "now")
    raise DatasetError(
        f"{folder}: was prepared with other arguments ({differing}); repeat those, choose another folder, or delete "
        "this one"
    )


def shown_differences(first: dict[str, Any], second: dict[str, Any], where: str, there: str) -> str:
    """The arguments in which two runs differ, by their names on the command line."""
    first, second = _flat(first), _flat(second)
    return "; ".join(
        f"{_FLAGS.get(name, name)}: {_shown(first.get(name))} {where}, {_shown(second.get(name))} {there}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _ReportPart:
    """The report lines of the shard being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed in rename and close)

    def append(self, row: dict[str, Any]) -> None:
        line = json_line(row)
        with writing(self.path):
            while line:
                line = line[self._file.write(line) :]

    def rename(self, path: Path) -> None:
        with writing(path):
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self.path, path)

    def close(self) -> None:
        self._file.close()


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat
