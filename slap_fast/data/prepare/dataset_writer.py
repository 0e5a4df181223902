"""Dataset writer: writes index, mel statistics, tokenizer and, last, `dataset.json`, which marks a finished dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.data.format.clip_durations import write_durations
from slap_fast.data.format.dataset_files import (
    FORMAT_VERSION,
    INDEX_NAME,
    INFO_NAME,
    REPORT_NAME,
    SAMPLE_RATE,
    TOKENIZER_NAME,
    write_index,
    write_json,
    writing,
)
from slap_fast.data.format.index import ClipIndex, map_records, record_parts
from slap_fast.data.prepare.mel_statistics import mel_statistics
from slap_fast.data.tokenizer import train_tokenizer


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`. `str()` is a readable summary.

    Attributes:
        folder: the dataset folder.
        clips, seconds, captions, shards: totals of the dataset.
        rejected: number of items left out, by reason; `report.jsonl` lists each.
        noted: number of clips kept but reported (`silent`, `clipped`, `renamed`...), by reason; also listed there.
        already_complete: the dataset was finished before.
        seen: files, rows or members of the source: `clips + merged + sum(rejected.values())`; 0 if unknown.
        merged: those merged into another item, such as sidecars or rows of the same audio.
        part: the part of the source, such as `3/16`; None for all of it.
    """

    folder: Path
    clips: int
    seconds: float
    captions: int
    shards: int
    rejected: dict[str, int]
    noted: dict[str, int]
    already_complete: bool = False
    seen: int = 0
    merged: int = 0
    part: str | None = None

    def __str__(self) -> str:
        state = "already complete, nothing done" if self.already_complete else "complete"
        of_part = "" if self.part is None else f"part {self.part}: "
        lines = [
            f"{self.folder}: {of_part}{state}: {self.clips} clips, {self.seconds / 3600:.2f} hours, "
            f"{self.captions} captions, {self.shards} shards"
        ]
        if self.seen:
            left_out = sum(self.rejected.values())
            lines.append(
                f"  seen: {self.seen} files, rows or tar members = {self.clips} clips + {self.merged} merged into one "
                f"+ {left_out} left out"
            )
        lines += [f"  left out: {count} x {reason}" for reason, count in sorted(self.rejected.items())]
        lines += [f"  kept: {count} x {reason}" for reason, count in sorted(self.noted.items())]
        if self.rejected or self.noted:
            lines.append(f"  each is named in {self.folder / REPORT_NAME}")
        return "\n".join(lines)


def write_dataset(
    folder: Path,
    *,
    name: str,
    shards: list[dict[str, Any]],
    captions: int,
    parts: Iterable[np.ndarray],
    vocab_size: int | None = None,
    extra: dict[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Completes the dataset of the tars in `folder`; returns the content of `dataset.json`, which is written last.

    Args:
        folder: the folder of the tars.
        name: name of the dataset.
        shards: `{name, bytes, clips, seconds}` of each tar.
        captions: total number of captions.
        parts: `[n]` INDEX_DTYPE records each, in shard order.
        vocab_size: if given, trains a tokenizer with at most this many tokens.
        extra: further fields of `dataset.json`.
        progress: show progress bars.
    """
    clips = sum(shard["clips"] for shard in shards)
    write_index(folder / INDEX_NAME, parts, clips)
    info: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "clips": clips,
        "seconds": sum(shard["seconds"] for shard in shards),
        "captions": captions,
        "sample_rate": SAMPLE_RATE,
        "shards": shards,
    }
    records = map_records(folder / INDEX_NAME, clips)
    durations = write_durations(folder, shards, clips, partial(record_parts, records))
    index = ClipIndex(folder, info, records, durations)
    info["mel_mean"], info["mel_std"] = mel_statistics(index, progress=progress)
    if vocab_size is not None:
        with writing(folder / TOKENIZER_NAME):
            tokenizer = train_tokenizer(index.iter_captions(), vocab_size, folder / TOKENIZER_NAME)
        info["vocab_size"] = len(tokenizer)
    info |= extra or {}
    write_json(folder / INFO_NAME, info)
    return info


def dataset_report(folder: Path, info: dict[str, Any], already_complete: bool = False) -> PrepareReport:
    """The report of a dataset from its `dataset.json`."""
    return PrepareReport(
        folder=folder,
        clips=info["clips"],
        seconds=info["seconds"],
        captions=info["captions"],
        shards=len(info["shards"]),
        rejected=info.get("rejected", {}),
        noted=info.get("noted", {}),
        already_complete=already_complete,
        seen=info.get("seen", 0),
        merged=info.get("merged", 0),
    )
