"""What an unfinished dataset folder remembers, so that a run that was stopped goes on after its last whole shard.

In `.prepare/`: `arguments.json`, and for every shard its index records, its part of the report, and the running totals.
All of these are on the disk before the tar gets its name; a shard stands if its tar does and fits them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.data.format.dataset_files import (
    INDEX_NAME,
    REPORT_NAME,
    SAMPLE_RATE,
    STATE_FOLDER,
    DatasetError,
    write_atomically,
    write_index,
    write_json,
    writing,
)
from slap_fast.data.format.shard_writer import ShardWriter

_COPY_BYTES = 1 << 20
_SHOWN = 200  # characters of an argument in a message
_FLAGS = {
    "name": "--name",
    "max_shard_bytes": "--shard-megabytes, in bytes",
    "min_duration": "--min-duration",
    "max_duration": "--max-duration",
    "vocab_size": "--vocab-size",
    "source.kind": "what SOURCE is (--layout)",
    "source.path": "SOURCE",
    "source.sha256": "the content of SOURCE (SHA-256)",
    "source.files": "the files of SOURCE (SHA-256 of their names)",
    "source.audio_root": "--audio-dir",
    "source.audio_column": "--audio-column",
    "source.caption_columns": "--caption-columns",
}
"""What the arguments that are remembered are called on the command line."""


@dataclass
class Totals:
    """Running totals after some shard.

    Attributes:
        consumed: items of the source that are settled.
        captions: in the shards.
        rejected: items left out, by reason.
        noted: clips kept and reported, by reason.
        shard: `{name, bytes, clips, seconds}` of the last shard.
    """

    consumed: int = 0
    captions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    shard: dict[str, Any] = field(default_factory=dict)


class IngestState:
    """The part of a dataset folder that stands, and the one place that adds to it.

    Attributes:
        totals: up to the last item settled, committed or not.
        shards: `{name, bytes, clips, seconds}` of the committed shards.
        spill: folder for the temporary files of large clips.
    """

    def __init__(self, folder: Path, arguments: dict[str, Any]) -> None:
        self.folder = folder
        self.shards: list[dict[str, Any]] = []
        self.totals = Totals()
        self._memory = folder / STATE_FOLDER
        self.spill = self._memory / "spill"
        self._agree(arguments)
        self._find_standing()
        self._clear_rest()
        self._pending = _ReportPart(self._memory / "pending.jsonl")

    def new_shard(self) -> ShardWriter:
        return ShardWriter(self.folder / _shard_name(len(self.shards)), len(self.shards))

    def reject(self, source: str, reason: str, detail: str) -> None:
        """Counts and names an item that is left out."""
        self.totals.rejected[reason] += 1
        self._pending.append({"source": source, "kept": False, "reason": reason, "detail": detail})

    def note(self, source: str, reason: str, detail: str) -> None:
        """Counts and names a clip that is kept."""
        self.totals.noted[reason] += 1
        self._pending.append({"source": source, "kept": True, "reason": reason, "detail": detail})

    def commit(self, shard: ShardWriter) -> None:
        """Makes a shard stand, with everything settled so far."""
        base = self._memory / shard.path.stem
        size = shard.size
        records = shard.seal()
        entry = {"name": shard.path.name, "bytes": size, "clips": shard.clips, "seconds": shard.samples / SAMPLE_RATE}
        self.totals.shard = entry
        write_index(base.with_suffix(".npy"), [records], len(records))
        write_json(base.with_suffix(".json"), vars(self.totals))
        self._pending.rename(base.with_suffix(".jsonl"))
        shard.commit()
        self.shards.append(entry)
        self._pending = _ReportPart(self._memory / "pending.jsonl")

    def index_parts(self) -> Iterator[np.ndarray]:
        """`[n]` INDEX_DTYPE of each shard."""
        for number in range(len(self.shards)):
            yield np.load(self._part(number, ".npy"))

    def write_report(self) -> None:
        """Writes `report.jsonl`: every shard's part, and what came after the last."""
        self._pending.close()
        parts = [self._part(number, ".jsonl") for number in range(len(self.shards))]
        write_atomically(self.folder / REPORT_NAME, _pieces([*parts, self._pending.path]))

    def forget(self) -> None:
        """Removes `.prepare/`: the dataset is finished, or there is nothing to go on from."""
        self._pending.close()
        shutil.rmtree(self._memory, ignore_errors=True)

    def close(self) -> None:
        self._pending.close()

    def _part(self, number: int, suffix: str) -> Path:
        return (self._memory / _shard_name(number)).with_suffix(suffix)

    def _agree(self, arguments: dict[str, Any]) -> None:
        path = self._memory / "arguments.json"
        if path.exists():
            check_arguments(self.folder, json.loads(path.read_bytes()), arguments)
            return
        if (self.folder / INDEX_NAME).exists() or any(self.folder.glob("*.tar")):
            raise DatasetError(
                f"{self.folder}: holds tars or an index that no unfinished `slap-fast prepare` left; choose an empty "
                "folder, or, if the tars hold 16 kHz mono FLAC, run `slap-fast prepare --reindex` on it"
            )
        with writing(self._memory):
            self._memory.mkdir(exist_ok=True)
        write_json(path, arguments)

    def _find_standing(self) -> None:
        while True:
            number = len(self.shards)
            tar = self.folder / _shard_name(number)
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

    def _clear_rest(self) -> None:
        for path in [*self.folder.glob("shard-*.tar"), *self.folder.glob(".*.tmp")]:
            if path.name.startswith(".") or path.name >= _shard_name(len(self.shards)):
                path.unlink()
        shutil.rmtree(self.spill, ignore_errors=True)
        with writing(self.spill):
            self.spill.mkdir()


def check_arguments(folder: Path, stored: Any, arguments: dict[str, Any]) -> None:
    """Raises DatasetError if `folder` was begun with other arguments."""
    if stored == arguments:
        return
    stored = _flat(stored) if isinstance(stored, dict) else {}
    given = _flat(arguments)
    differing = [
        f"{_FLAGS.get(name, name)}: {_shown(stored.get(name))} then, {_shown(given.get(name))} now"
        for name in sorted(stored.keys() | given.keys())
        if stored.get(name) != given.get(name)
    ]
    raise DatasetError(
        f"{folder}: was prepared with other arguments ({'; '.join(differing)}); repeat those, choose another "
        "folder, or delete this one"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _ReportPart:
    """Report lines on their way to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed in rename and close)

    def append(self, row: dict[str, Any]) -> None:
        # backslashreplace gives a file name that is not UTF-8 a JSON escape.
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
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


def _pieces(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(_COPY_BYTES):
                yield piece


def _shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat
