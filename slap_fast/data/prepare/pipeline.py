"""Captioned audio in, a dataset folder out: `prepare`.

The source is iterated in this process; worker processes decode, resample and encode; results come back in source order
and are appended to one tar at a time. A tar gets its name only when it is whole and on the disk, and `.prepare/` then
holds what a later run needs to go on after it. A run that goes on gives the same bytes as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import (
    INFO_NAME,
    REPORT_NAME,
    SAMPLE_RATE,
    STATE_FOLDER,
    DatasetError,
    locked_for_writing,
)
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.format.shard_writer import KeyRegistry, ShardWriter, encode_metadata
from slap_fast.data.prepare.clip_encoder import ClipEncoder, EncodedClip
from slap_fast.data.prepare.dataset_writer import PrepareReport, dataset_report, write_dataset
from slap_fast.data.prepare.parallel_map import WorkerDied, ordered_map
from slap_fast.data.prepare.source import ClipItem, Rejection
from slap_fast.data.prepare.source_detection import Source, open_source
from slap_fast.data.prepare.state import IngestState, check_arguments
from slap_fast.runtime.progress import progress_bar


def prepare(
    source: Source | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    workers: int | None = None,
    max_shard_bytes: int = 1_000_000_000,
    min_duration: float = 0.0,
    max_duration: float | None = None,
    vocab_size: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Turns captioned audio into a dataset folder: WebDataset tars, `index.npy`, `dataset.json`, `report.jsonl`.

    Audio becomes 16 kHz mono 16-bit FLAC: channels mixed by their mean, resampled once by soxr (HQ), clipped, not
    dithered. What cannot be used is left out, counted and named in `report.jsonl` with the reason, and so is what was
    changed. All that the source holds is a clip, part of one, or left out: the counts are checked at the end. Nothing
    is ever held in memory but the clips in flight.

    A run that is stopped, killed or out of disk is continued by calling again with the same arguments: it goes on after
    the last whole shard, and the result is the same, byte for byte. On a finished dataset the same call does nothing.

    Args:
        source: a `Source` (`open_source` or `GeneratedSource` of `slap_fast.data.prepare.source_detection` make one), or a path.
        out: the dataset folder, made if absent.
        name: of the dataset; the source's if None.
        workers: processes; 0 does everything in this one, None takes one per CPU this process may use. Unless it is 0,
            a script must call this under `if __name__ == "__main__":`.
        max_shard_bytes: a tar is closed before it would grow beyond this; a clip larger than that gets its own.
        min_duration: seconds; shorter clips are left out.
        max_duration: seconds; longer clips are left out; None keeps any length.
        vocab_size: if given, a byte-level BPE of at most this many tokens is trained on the captions into `tokenizer/`.
        progress: show a progress bar.

    Raises:
        DatasetError: the source cannot be read, `out` holds something else, a file cannot be written (a full disk), not
            one clip can be used, or the source changed meanwhile. Finished shards stay.
    """
    if isinstance(source, (str, os.PathLike)):
        source = open_source(source)
    if max_shard_bytes < 1 or min_duration < 0 or (max_duration is not None and max_duration <= min_duration):
        raise ValueError(
            f"max_shard_bytes ({max_shard_bytes}) must be positive and 0 <= min_duration ({min_duration}) < "
            f"max_duration ({max_duration})"
        )
    arguments = json.loads(
        json.dumps(
            {
                "source": source.describe(),
                "name": name or source.name,
                "max_shard_bytes": max_shard_bytes,
                "min_duration": min_duration,
                "max_duration": max_duration,
                "vocab_size": vocab_size,
            }
        )
    )
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    folder = Path(out)
    with locked_for_writing(folder):
        if (folder / INFO_NAME).exists():
            return _already_complete(folder, arguments)
        state = IngestState(folder, arguments)
        try:
            merged = _ingest(source, state, min_duration, max_duration, max_shard_bytes, workers, progress)
            _check_account(source, state, merged)
            return _finish(state, arguments, source.seen, merged, progress)
        finally:
            state.close()


def _ingest(
    source: Source,
    state: IngestState,
    min_duration: float,
    max_duration: float | None,
    max_shard_bytes: int,
    workers: int,
    progress: bool,
) -> int:
    """Returns how many files, rows or members are part of another: captions beside audio, rows of the same clip."""
    keys = KeyRegistry()
    items = _Account(source)
    bar = progress_bar(
        total=source.count() if progress else None,
        initial=state.totals.consumed,
        desc="prepare",
        unit="clip",
        disable=not progress,
    )
    encoder = ClipEncoder(state.spill, min_duration, max_duration)
    results = ordered_map(encoder, _remaining(items, state.totals.consumed, keys), workers=workers)
    shard: ShardWriter | None = None
    seconds = sum(shard["seconds"] for shard in state.shards)
    with bar, contextlib.closing(results):
        try:
            for item, outcome in results:
                key, renamed = keys.claim(item.name) if isinstance(item, ClipItem) else ("", False)
                if isinstance(outcome, WorkerDied):
                    outcome = Rejection(item.origin, "crashed", "decoding it killed the process, or memory ran out")
                if isinstance(outcome, Rejection):
                    state.reject(outcome.origin, outcome.reason, outcome.detail)
                else:
                    assert isinstance(item, ClipItem)
                    metadata = _metadata(item, outcome)
                    if shard is not None and shard.size_with(outcome.flac, metadata) > max_shard_bytes:
                        state.commit(shard)
                        shard = None
                    shard = shard or state.new_shard()
                    shard.add(key, outcome.flac, metadata, len(item.captions))
                    state.totals.captions += len(item.captions)
                    if renamed:
                        state.note(item.origin, "renamed", f"its key is taken; it became {key}")
                    for reason, detail in outcome.notes:
                        state.note(item.origin, reason, detail)
                    seconds += outcome.flac.samples / SAMPLE_RATE
                state.totals.consumed += 1
                bar.update()
                left_out = state.totals.rejected.total()
                bar.set_postfix_str(f"{seconds / 3600:.2f} h, {left_out} left out", refresh=False)
            if shard is not None:
                state.commit(shard)
                shard = None
        finally:
            if shard is not None:
                shard.discard()
    return items.merged


class _Account:
    """A source's items, counting what is merged into them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.merged = 0

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        for item in self._source:
            self.merged += item.seen - 1
            yield item


def _check_account(source: Source, state: IngestState, merged: int) -> None:
    """Raises where anything that the source met is not kept, merged into what is kept or left out, or left out."""
    kept, left_out = sum(shard["clips"] for shard in state.shards), state.totals.rejected.total()
    if source.seen != kept + merged + left_out:
        raise DatasetError(
            f"{state.folder}: {source.seen} files, rows or members were seen, but {kept} kept, {merged} merged and "
            f"{left_out} left out are not as many; if the source did not change meanwhile, this is a fault of "
            "slap-fast: please report it"
        )


def _remaining(
    source: Iterable[ClipItem | Rejection], consumed: int, keys: KeyRegistry
) -> Iterator[ClipItem | Rejection]:
    items = iter(source)
    # Items of standing shards are not decoded again, but their keys are still taken.
    for item in itertools.islice(items, consumed):
        if isinstance(item, ClipItem):
            keys.claim(item.name)
    yield from items


def _metadata(item: ClipItem, encoded: EncodedClip) -> bytes:
    value: dict[str, Any] = {
        "captions": list(item.captions),
        "source": item.origin,
        "seconds": encoded.flac.samples / SAMPLE_RATE,
        "source_sample_rate": encoded.source_sample_rate,
        "source_channels": encoded.source_channels,
    }
    if item.metadata:
        value["metadata"] = item.metadata
    return encode_metadata(value)


def _finish(state: IngestState, arguments: dict[str, Any], seen: int, merged: int, progress: bool) -> PrepareReport:
    state.write_report()
    totals = state.totals
    if not state.shards:
        state.forget()
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(totals.rejected.items()))
        raise DatasetError(
            f"{state.folder}: none of {totals.consumed} clips can be used ({reasons or 'the source is empty'}); each "
            f"is named in {state.folder / REPORT_NAME}"
        )
    info = write_dataset(
        state.folder,
        name=arguments["name"],
        shards=state.shards,
        captions=totals.captions,
        parts=state.index_parts(),
        vocab_size=arguments["vocab_size"],
        extra={
            "seen": seen,
            "merged": merged,
            "rejected": dict(totals.rejected),
            "noted": dict(totals.noted),
            "prepared_with": arguments,
        },
        progress=progress,
    )
    state.forget()
    return dataset_report(state.folder, info)


def _already_complete(folder: Path, arguments: dict[str, Any]) -> PrepareReport:
    info = ClipIndex.open(folder).info
    check_arguments(folder, info.get("prepared_with"), arguments)
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return dataset_report(folder, info, already_complete=True)
