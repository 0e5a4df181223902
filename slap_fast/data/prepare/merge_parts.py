"""`merge`: joins the parts of a source that several machines prepared to one dataset, without copying audio."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slap_fast.data.format.dataset_files import (
    INDEX_DTYPE,
    INDEX_NAME,
    INFO_NAME,
    PART_NAME,
    REPORT_NAME,
    STATE_FOLDER,
    DatasetError,
    locked_for_writing,
    read_pieces,
    write_atomically,
    write_json,
    writing,
)
from slap_fast.data.format.index import ClipIndex, map_records
from slap_fast.data.prepare.dataset_writer import PrepareReport, dataset_report, write_dataset
from slap_fast.data.prepare.parts import PartInfo, read_part
from slap_fast.data.prepare.state import check_arguments, shard_name, shown_differences
from slap_fast.runtime.durable_files import replace_file, sync_folder
from slap_fast.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

_SHOWN = 20  # parts in a message


class _Finished(NamedTuple):
    folder: Path
    info: PartInfo


def merge(
    parts: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, progress: bool = True
) -> PrepareReport:
    """Joins all parts of a source, written by `prepare(..., part=...)`, to the dataset that one machine would write.

    Clips, their order and their bytes are the same, as are the counts, the report, the mel statistics and the
    tokenizer; only the borders between shards differ. The tars are hard-linked, so that the parts can be deleted
    afterwards. On another file system than that of the parts, or on one without hard links, they are copied, with a
    warning.

    Args:
        parts: the folders of all parts, in any order.
        out: the dataset folder, created if missing. The same call continues an interrupted merge.
        progress: show progress bars.

    Raises:
        DatasetError: a part is missing, given twice, unfinished, damaged, or of another source, other arguments or
            other versions of the decoders; or `out` contains something else.
    """
    finished = _checked([Path(part) for part in parts])
    folder = Path(out)
    first = finished[0].info
    if any(folder.resolve() == part.folder.resolve() for part in finished):
        raise DatasetError(f"{folder}: is one of the parts; choose another folder for the dataset")
    arguments = first.arguments | {"parts": first.part.of}
    with locked_for_writing(folder):
        if (folder / INFO_NAME).exists():
            info = ClipIndex.open(folder).info
            check_arguments(folder, info.get("prepared_with"), first.arguments)
            shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
            return dataset_report(folder, info, already_complete=True)
        _begin(folder, arguments)
        shards = _link_shards(finished, folder, progress)
        reports = [part.folder / REPORT_NAME for part in finished]
        write_atomically(folder / REPORT_NAME, chain.from_iterable(map(read_pieces, reports)))
        rejected, noted = _sum(part.info.rejected for part in finished), _sum(part.info.noted for part in finished)
        if not shards:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(rejected.items()))
            raise DatasetError(
                f"{folder}: no part has a clip ({reasons or 'the source is empty'}); {folder / REPORT_NAME} lists all"
            )
        info = write_dataset(
            folder,
            name=first.arguments["name"],
            shards=shards,
            captions=sum(part.info.captions for part in finished),
            parts=_records(finished),
            vocab_size=first.arguments["vocab_size"],
            extra={
                "seen": sum(part.info.seen for part in finished),
                "merged": sum(part.info.merged for part in finished),
                "rejected": rejected,
                "noted": noted,
                "prepared_with": first.arguments,
            },
            progress=progress,
        )
        shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return dataset_report(folder, info)


def _checked(folders: list[Path]) -> list[_Finished]:
    """The parts in order, if they are all parts of one source."""
    if not folders:
        raise DatasetError("no part to merge; give the folders of all parts")
    by_number: dict[int, _Finished] = {}
    reference: _Finished | None = None
    for folder in folders:
        part = _Finished(folder, _finished_part(folder))
        reference = reference or part
        _check_same(reference, part)
        number = part.info.part.number
        if (twin := by_number.setdefault(number, part)) is not part:
            raise DatasetError(f"{folder}: part {part.info.part}, as {twin.folder}; give each part once")
    assert reference is not None
    of = reference.info.part.of
    missing = [number for number in range(1, of + 1) if number not in by_number]
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        raise DatasetError(f"{len(missing)} of {of} parts are missing: {shown}; give all of them")
    parts = [by_number[number] for number in range(1, of + 1)]
    whole = reference.info.source
    if sum(part.info.seen for part in parts) != whole.seen:
        raise DatasetError(
            f"the parts add up to {sum(part.info.seen for part in parts)} files, rows or members, of {whole.seen} in "
            "the source; this is a bug of slap-fast: please report it"
        )
    for part in parts:
        _check_files(part)
    return parts


def _finished_part(folder: Path) -> PartInfo:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder; --merge takes the folders that `slap-fast prepare --part` wrote")
    if not (folder / PART_NAME).exists():
        if (folder / STATE_FOLDER).exists():
            raise DatasetError(f"{folder}: an unfinished part; run its command again, which continues it")
        what = "a whole dataset, not a part" if (folder / INFO_NAME).exists() else f"no part, it has no {PART_NAME}"
        raise DatasetError(f"{folder}: {what}; --merge takes the folders that `slap-fast prepare --part` wrote")
    return read_part(folder)


def _check_same(reference: _Finished, part: _Finished) -> None:
    """Raises DatasetError if two parts are not of one run."""
    what = [("arguments", reference.info.arguments, part.info.arguments)]
    what.append(("number of parts", {"parts": reference.info.part.of}, {"parts": part.info.part.of}))
    what.append(("content of the source", vars(reference.info.source), vars(part.info.source)))
    what.append(("versions of the decoders", reference.info.readers, part.info.readers))
    for name, first, other in what:
        if first != other:
            differences = shown_differences(first, other, f"in {reference.folder}", f"in {part.folder}")
            raise DatasetError(
                f"{part.folder}: not of the same run as {reference.folder}: other {name} ({differences}); prepare one "
                "of them again, with the same command, source and packages"
            )


def _check_files(part: _Finished) -> None:
    for shard in part.info.shards:
        path = part.folder / shard["name"]
        size = path.stat().st_size if path.exists() else None
        if size != shard["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            raise DatasetError(
                f"{path}: {found}, instead of {shard['bytes']} bytes; restore it, or delete the folder and prepare "
                "this part again"
            )
    for name in (INDEX_NAME, REPORT_NAME):
        if not (part.folder / name).exists():
            raise DatasetError(f"{part.folder / name}: missing; delete the folder and prepare this part again")


def _begin(folder: Path, arguments: dict[str, Any]) -> None:
    """Marks the folder as that of this merge."""
    marker = folder / STATE_FOLDER / "arguments.json"
    if marker.exists():
        check_arguments(folder, json.loads(marker.read_bytes()), arguments)
        return
    if any((folder / name).exists() for name in (INDEX_NAME, PART_NAME)) or any(folder.glob("*.tar")):
        raise DatasetError(f"{folder}: contains tars, an index or a part; choose an empty folder")
    with writing(marker):
        marker.parent.mkdir(exist_ok=True)
    write_json(marker, arguments)


def _link_shards(parts: list[_Finished], folder: Path, progress: bool) -> list[dict[str, Any]]:
    """Links the tars of all parts under their numbers in the dataset; returns its shard list."""
    tars = [(part.folder / shard["name"], shard) for part in parts for shard in part.info.shards]
    shards: list[dict[str, Any]] = []
    copied, reason = 0, ""
    for number, (tar, shard) in enumerate(progress_bar(tars, desc="merge", unit="shard", disable=not progress)):
        target = folder / shard_name(number)
        with writing(target):
            if not (target.exists() and target.stat().st_size == shard["bytes"] and _unchanged(tar, target)):
                target.unlink(missing_ok=True)
                try:
                    os.link(tar, target)
                except OSError as error:
                    copied, reason = copied + 1, error.strerror or str(error)
                    replace_file(target, read_pieces(tar))
                    shutil.copystat(tar, target)
        shards.append(shard | {"name": target.name})
    for path in folder.glob("shard-*.tar"):
        if path.name >= shard_name(len(tars)):
            path.unlink()
    with contextlib.suppress(OSError):
        sync_folder(folder)
    if copied:
        logger.warning("%s: %d of %d shards were copied, not linked (%s)", folder, copied, len(tars), reason)
    return shards


def _unchanged(tar: Path, target: Path) -> bool:
    """Whether an interrupted merge linked or completely copied this tar."""
    return tar.samefile(target) or tar.stat().st_mtime_ns == target.stat().st_mtime_ns


def _records(parts: list[_Finished]) -> Iterator[np.ndarray]:
    shards = 0
    for part in parts:
        if part.info.clips:
            records = np.array(map_records(part.folder / INDEX_NAME, part.info.clips), INDEX_DTYPE)
            records["shard"] += shards
            yield records
        shards += len(part.info.shards)


def _sum(counts: Iterator[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
