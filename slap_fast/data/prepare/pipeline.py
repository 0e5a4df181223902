"""`prepare`: converts captioned audio to a dataset folder.

This process iterates the source; worker processes decode, resample and encode. Results return in source order and are
appended to one tar at a time. A tar is renamed to its final name when it is complete and on disk; by then `.prepare/`
has what a later run needs to resume after it. A resumed run gives the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from slap_fast.audio.reader import reader_versions
from slap_fast.data.format.dataset_files import (
    INDEX_NAME,
    INFO_NAME,
    PART_NAME,
    REPORT_NAME,
    SAMPLE_RATE,
    STATE_FOLDER,
    DatasetError,
    locked_for_writing,
    write_index,
)
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.format.shard_writer import ShardWriter, encode_metadata
from slap_fast.data.prepare.clip_encoder import ClipEncoder, EncodedClip
from slap_fast.data.prepare.dataset_writer import PrepareReport, dataset_report, write_dataset
from slap_fast.data.prepare.parallel_map import WorkerDied, ordered_map
from slap_fast.data.prepare.parts import Part, PartInfo, SourceItems, read_part
from slap_fast.data.prepare.source import ClipItem, Rejection, Source
from slap_fast.data.prepare.source_detection import open_source
from slap_fast.data.prepare.state import PrepareState, check_arguments
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
    part: Part | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Converts captioned audio to a dataset folder: WebDataset tars, `index.npy`, `dataset.json`, `report.jsonl`.

    Audio becomes 16 kHz mono 16-bit FLAC: mean of the channels, resampled once by soxr (HQ), clipped, not dithered.
    Unusable clips are left out; these and the changed ones are counted and listed in `report.jsonl` with the reason. At
    the end the counts are checked: everything in the source is a clip, part of one, or left out. Memory holds only the
    clips in flight.

    To resume a run that was stopped, killed or ran out of disk, call again with the same arguments: it continues after
    the last complete shard, with the same result byte for byte. On a finished dataset the same call does nothing.

    Args:
        source: a `Source` (from `open_source`, or a `GeneratedSource`) or a path.
        out: the dataset folder, created if missing.
        name: name of the dataset; that of the source if None.
        workers: number of processes; 0 does everything in this one, None uses one per available CPU. Unless it is 0, a
            script must call this under `if __name__ == "__main__":`.
        max_shard_bytes: maximum size of a tar; a clip that is larger gets its own.
        min_duration: seconds; shorter clips are left out.
        max_duration: seconds; longer clips are left out; None for no limit.
        vocab_size: if given, trains a byte-level BPE tokenizer with at most this many tokens on the captions.
        part: prepares this share of the source alone, into a folder for `merge`; the tokenizer is trained then. All
            machines read the whole list of the source, and decode their share.
        progress: show a progress bar.

    Raises:
        DatasetError: the source cannot be read, `out` contains something else, a file cannot be written (full disk), no
            clip can be used, or the source changed during the run. Finished shards stay.
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
    if part is not None:
        arguments["part"] = str(part)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    folder = Path(out)
    with locked_for_writing(folder):
        if (folder / INFO_NAME).exists():
            return _already_complete(folder, arguments)
        if (folder / PART_NAME).exists():
            return _already_complete_part(folder, arguments)
        state = PrepareState(folder, arguments)
        try:
            encoder = ClipEncoder(state.spill, min_duration, max_duration)
            items = SourceItems(source, part, state.totals.consumed)
            _convert(items, state, encoder, max_shard_bytes, workers, progress)
            _check_counts(source, state, items)
            state.write_report()
            if part is not None:
                return _finish_part(state, arguments, part, items)
            return _finish(state, arguments, items, progress)
        finally:
            state.close()


def _convert(
    items: SourceItems, state: PrepareState, encoder: ClipEncoder, max_shard_bytes: int, workers: int, progress: bool
) -> None:
    """Converts the remaining items to shards."""
    bar = progress_bar(
        total=items.count() if progress else None,
        initial=state.totals.consumed,
        desc="prepare",
        unit="clip",
        disable=not progress,
    )
    results = ordered_map(encoder, items, workers=workers)
    shard: ShardWriter | None = None
    seconds = sum(shard["seconds"] for shard in state.shards)
    with bar, contextlib.closing(results):
        try:
            for item, outcome in results:
                key, renamed = items.claims.popleft()
                if isinstance(outcome, WorkerDied):
                    outcome = Rejection(item.origin, "crashed", "decoding it killed the process, or out of memory")
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


def _check_counts(source: Source, state: PrepareState, items: SourceItems) -> None:
    """Raises unless everything in the source, or its part, was kept, merged into another item, or left out."""
    kept, left_out = sum(shard["clips"] for shard in state.shards), state.totals.rejected.total()
    seen = source.seen - items.whole.seen + items.seen
    if seen != kept + items.merged + left_out:
        raise DatasetError(
            f"{state.folder}: {seen} files, rows or members were seen, but {kept} kept + {items.merged} merged + "
            f"{left_out} left out do not add up to that; if the source did not change during the run, this is a bug of "
            "slap-fast: please report it"
        )


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


def _finish(state: PrepareState, arguments: dict[str, Any], items: SourceItems, progress: bool) -> PrepareReport:
    totals = state.totals
    if not state.shards:
        state.delete()
        reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(totals.rejected.items()))
        hint = ""
        if totals.rejected["no_captions"] and arguments["source"].get("kind") == "folder":
            hint = "; for audio with classes, give --caption-template 'the sound of {}'"
        raise DatasetError(
            f"{state.folder}: none of {totals.consumed} clips can be used ({reasons or 'the source is empty'}); "
            f"{state.folder / REPORT_NAME} lists each of them{hint}"
        )
    info = write_dataset(
        state.folder,
        name=arguments["name"],
        shards=state.shards,
        captions=totals.captions,
        parts=state.index_parts(),
        vocab_size=arguments["vocab_size"],
        extra={
            "seen": items.seen,
            "merged": items.merged,
            "rejected": dict(totals.rejected),
            "noted": dict(totals.noted),
            "prepared_with": arguments,
        },
        progress=progress,
    )
    state.delete()
    return dataset_report(state.folder, info)


def _finish_part(state: PrepareState, arguments: dict[str, Any], part: Part, items: SourceItems) -> PrepareReport:
    totals = state.totals
    info = PartInfo(
        part=part,
        arguments={name: value for name, value in arguments.items() if name != "part"},
        source=items.whole,
        readers=reader_versions(),
        shards=state.shards,
        captions=totals.captions,
        seen=items.seen,
        merged=items.merged,
        rejected=dict(totals.rejected),
        noted=dict(totals.noted),
    )
    write_index(state.folder / INDEX_NAME, state.index_parts(), info.clips)
    info.write(state.folder)
    state.delete()
    return _part_report(state.folder, info)


def _part_report(folder: Path, info: PartInfo, already_complete: bool = False) -> PrepareReport:
    return PrepareReport(
        folder=folder,
        clips=info.clips,
        seconds=sum(shard["seconds"] for shard in info.shards),
        captions=info.captions,
        shards=len(info.shards),
        rejected=info.rejected,
        noted=info.noted,
        already_complete=already_complete,
        seen=info.seen,
        merged=info.merged,
        part=str(info.part),
    )


def _already_complete_part(folder: Path, arguments: dict[str, Any]) -> PrepareReport:
    info = read_part(folder)
    check_arguments(folder, info.with_part, arguments)
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return _part_report(folder, info, already_complete=True)


def _already_complete(folder: Path, arguments: dict[str, Any]) -> PrepareReport:
    info = ClipIndex.open(folder).info
    check_arguments(folder, info.get("prepared_with"), arguments)
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return dataset_report(folder, info, already_complete=True)
