"""Audio tagging datasets as published, with several labels per clip: FSD50K and AudioSet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled.labeled_set import LabeledSet, LabelError, NamedFile, in_words, numbered
from slap_fast.data.prepare.file_search import AudioFinder
from slap_fast.data.prepare.source import Rejection
from slap_fast.data.prepare.table_rows import read_rows

FSD50K_LABELS = "FSD50K.ground_truth"
AUDIOSET_CLASSES = "class_labels_indices.csv"
_AUDIOSET_SPLITS = {"balanced_train": "balanced_train", "unbalanced_train": "unbalanced_train", "eval": "eval"}


def is_fsd50k(folder: Path) -> bool:
    return any((folder / FSD50K_LABELS / f"{part}.csv").is_file() for part in ("dev", "eval"))


def fsd50k(folder: Path) -> LabeledSet:
    """FSD50K (Fonseca et al., 2022): 200 classes, labels with their ancestors; splits `train`, `val` and `eval`.

    Args:
        folder: contains `FSD50K.ground_truth/` and `FSD50K.eval_audio/`, `FSD50K.dev_audio/`, or both.

    Raises:
        LabelError: no audio folder, or a row without file or labels.
    """
    files: list[NamedFile] = []
    left_out: list[Rejection] = []
    for part in ("dev", "eval"):
        table, audio = folder / FSD50K_LABELS / f"{part}.csv", folder / f"FSD50K.{part}_audio"
        if not table.is_file():
            left_out.append(Rejection(str(table), "no_table", f"not there; the {part} clips are not used"))
            continue
        rows = list(read_rows(table))
        if not audio.is_dir():
            detail = f"not there; the {len(rows)} clips of {table.name} are not used"
            left_out.append(Rejection(str(audio), "no_audio_folder", detail, len(rows)))
            continue
        for origin, row in rows:
            if isinstance(row, Rejection) or not row.get("fname") or not row.get("labels"):
                detail = row.detail if isinstance(row, Rejection) else "no fname or no labels"
                raise LabelError(f"{table.parent / origin}: {detail}")
            labels = tuple(in_words(label) for label in row["labels"].split(","))
            split = "eval" if part == "eval" else row.get("split") or "dev"
            files.append(NamedFile(audio / f"{row['fname']}.wav", labels, split=split))
    vocabulary = folder / FSD50K_LABELS / "vocabulary.csv"
    classes = [in_words(row[1]) for row in _csv(vocabulary, 3)] if vocabulary.is_file() else None
    return numbered(folder, "fsd50k", files, classes=classes, multi_label=True, left_out=left_out)


def is_audioset(folder: Path) -> bool:
    return (folder / AUDIOSET_CLASSES).is_file() and bool(_segment_tables(folder))


def audioset(folder: Path) -> LabeledSet:
    """AudioSet (Gemmeke et al., 2017): 527 classes; splits `balanced_train`, `unbalanced_train` and `eval`.

    Args:
        folder: contains `class_labels_indices.csv`, `eval_segments.csv` or other segment tables, and, in any subfolder,
            audio files named after the YouTube id of their segment (`{id}.wav`, `Y{id}.wav`, `{id}_30000_40000.flac`).
            A segment without an audio file is listed with the path `{id}.wav`, which cannot be read. A split without
            any audio file is left out.

    Raises:
        LabelError: no audio file, a damaged row, or a label that `class_labels_indices.csv` lacks.
    """
    names = {row[1]: row[2].strip() for row in _csv(folder / AUDIOSET_CLASSES, 3) if row[1].startswith("/")}
    audio = AudioFinder(folder).by_youtube_id
    files: list[NamedFile] = []
    left_out: list[Rejection] = []
    for split, table in _segment_tables(folder).items():
        of_split: list[NamedFile] = []
        found = 0
        for number, row in enumerate(_csv(table, 4, comments=True), 1):
            youtube_id, start, mids = row[0], row[1], [mid.strip() for mid in row[3].split(",")]
            if unknown := [mid for mid in mids if mid not in names]:
                raise LabelError(f"{table}: segment {number} ({youtube_id}): {AUDIOSET_CLASSES} lacks {unknown[0]!r}")
            try:
                file = _file_of_segment(audio.get(youtube_id, []), float(start))
            except ValueError as error:
                raise LabelError(f"{table}: segment {number} ({youtube_id}): its start is {start[:40]!r}") from error
            found += file is not None
            path = folder / (file or f"{youtube_id}.wav")
            of_split.append(NamedFile(path, tuple(names[mid] for mid in mids), split=split, group=youtube_id))
        if found:
            files += of_split
        else:
            detail = f"no audio file of its {len(of_split)} segments is in {folder}"
            left_out.append(Rejection(table.name, "no_audio", detail, len(of_split)))
    if not files:
        raise LabelError(f"{folder}: no audio file is named after a segment of AudioSet, as in {{YouTube id}}.wav")
    return numbered(folder, "audioset", files, classes=list(names.values()), multi_label=True, left_out=left_out)


def _segment_tables(folder: Path) -> dict[str, Path]:
    tables = {split: folder / f"{name}_segments.csv" for split, name in _AUDIOSET_SPLITS.items()}
    return {split: table for split, table in tables.items() if table.is_file()}


def _file_of_segment(found: list[tuple[str, str]], seconds: float) -> str | None:
    """The file of a segment among those of its YouTube id: the one with its start in the name, else the only one."""
    if len(found) > 1:
        starts = {f"{seconds:g}", f"{seconds:.3f}", f"{seconds * 1000:.0f}"}
        named = [file for rest, file in found if starts & set(rest.strip("_-. ").split("_")[:1])]
        found = [("", file) for file in named]
    return found[0][1] if found else None


def _csv(path: Path, columns: int, *, comments: bool = False) -> Iterator[list[str]]:
    """Rows of a CSV without a header, without the lines that begin with `#` if `comments`."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = (line for line in file if line.strip() and not (comments and line.startswith("#")))
            for row in csv.reader(lines, skipinitialspace=True):
                if len(row) != columns:
                    raise LabelError(
                        f"{path}: the row {','.join(row)[:80]!r} has {len(row)} fields instead of {columns}"
                    )
                yield row
    except (OSError, UnicodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
