"""Relevance sets: text-to-audio retrieval where people judged which clips match each query, as in DCASE 2025, task 6.

A query has any number of relevant clips, and the judgment is binary. The average precision of a query within the first
16 ranks is divided by the number of its relevant clips, as in the baseline of the task.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slap_fast.data.format.captions import is_missing
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.file_search import audio_stem
from slap_fast.data.prepare.source import Rejection
from slap_fast.data.prepare.table_rows import RepeatedKey, json_object, read_rows
from slap_fast.errors import SlapFastError
from slap_fast.evaluation.bootstrap import RESAMPLES, confidence_interval
from slap_fast.evaluation.retrieval import RECALL_AT, aligned, precision_sum, score_queries

RELEVANCE_AT = 16
_COLUMNS = (
    ("query", "caption", "text"),
    ("audio_filenames", "audio_filename", "file_names", "file_name", "filename", "fname"),
)
_GRADE_COLUMNS = ("relevance", "grade", "score", "rating")


class RelevanceError(SlapFastError, ValueError):
    """A file of relevance sets that cannot be used."""


@dataclass(frozen=True)
class RelevanceSets:
    """Q queries, and the names of the audio files that are relevant to each; `source` is for messages."""

    source: str
    queries: list[str]
    files: list[list[str]]

    @property
    def pairs(self) -> int:
        return sum(map(len, self.files))


def read_relevance(path: Path) -> RelevanceSets:
    """Read a table or a JSON object of queries and files.

    Args:
        path: a CSV (or another table) with the columns `query` and `audio_filenames`, the latter a list as Python or
            JSON writes it (the format of DCASE 2025) or one file per row; or a JSON object
            `{"query": ["file.wav", ...]}`. Rows of the same query are merged.

    Raises:
        RelevanceError: it cannot be read, lacks a column, has grades, or a query has no file.
    """
    if not path.is_file():
        raise RelevanceError(f"{path}: no such file; give a CSV with the columns query and audio_filenames")
    merged: dict[str, dict[str, None]] = {}
    for origin, query, names in _rows(path):
        if not query.strip():
            raise RelevanceError(f"{path.parent / origin}: no query")
        if not names:
            raise RelevanceError(f"{path.parent / origin}: the query {query[:80]!r} has no audio file")
        merged.setdefault(query, {}).update(dict.fromkeys(names))
    if not merged:
        raise RelevanceError(f"{path}: it has no query")
    return RelevanceSets(str(path), list(merged), [list(names) for names in merged.values()])


def relevant_clips(relevance: RelevanceSets, names: Sequence[Sequence[str]]) -> Tensor:
    """`[Q, N]` bool: whether each of N clips of a dataset is relevant to a query.

    A file is the clip of the same name, without folder and extension.

    Args:
        names: the names of each clip: its key, and its file at the source.

    Raises:
        RelevanceError: a file is not among the clips, or is the name of several of them.
    """
    clips: dict[str, list[int]] = {}
    for clip, own in enumerate(names):
        for name in {_name(one) for one in own}:
            clips.setdefault(name, []).append(clip)
    relevant = torch.zeros(len(relevance.queries), len(names), dtype=torch.bool)
    for query, files in enumerate(relevance.files):
        for file in files:
            found = clips.get(_name(file), [])
            if len(found) != 1:
                what = f"the name of {len(found)} clips" if found else "not a clip of this dataset"
                raise RelevanceError(
                    f"{relevance.source}: query {relevance.queries[query][:80]!r}: {file!r} is {what}; "
                    "give the dataset that these judgments are about"
                )
            relevant[query, found[0]] = True
    return relevant


@dataclass(frozen=True)
class RelevanceScores:
    """Scores of Q queries: `per_query` has `[Q]` float64 of `t2a_{map16,r1,r5,r10,median_rank}`."""

    per_query: dict[str, np.ndarray]
    counts: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """The mean of each score (of the ranks: the median), `queries`, `relevant_pairs`, and `chance_t2a_map16`."""
        return {name: float(_statistic(name)(values)) for name, values in self.per_query.items()} | self.counts

    def intervals(
        self, resamples: int = RESAMPLES, *, level: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of all scores, over queries."""
        return {
            name: confidence_interval(values, statistic=_statistic(name), resamples=resamples, level=level, seed=seed)
            for name, values in self.per_query.items()
        }


def relevance_scores(
    audio: Tensor, queries: Tensor, relevant: Tensor, clips: Sequence[int] | None = None, *, chunk_size: int = 1024
) -> RelevanceScores:
    """Text-to-audio retrieval with relevance sets. Ties are in random order, as in `retrieval_metrics`.

    Args:
        audio: `[n, D]`, L2-normalized, the clips that were read.
        queries: `[Q, D]`, L2-normalized.
        relevant: `[Q, N]` bool, for all N clips, with at least one True in each row.
        clips: the positions of the n clips among the N; None: n = N. The others count as not found.

    Raises:
        ValueError: nothing to rank, inconsistent shapes, or a query without a relevant clip.
    """
    clips = range(len(audio)) if clips is None else clips
    n_queries, n_clips = relevant.shape
    if not len(audio) or not n_queries or len(queries) != n_queries or not len(clips) == len(audio) <= n_clips:
        raise ValueError(
            f"relevant has shape {tuple(relevant.shape)}; there are {len(queries)} queries and {len(audio)} clips"
        )
    if not relevant.any(1).all():
        raise ValueError(f"query {int((~relevant.any(1)).nonzero()[0])} has no relevant clip; leave it out")
    columns = torch.as_tensor(list(clips), dtype=torch.int64)
    audio, queries = audio.double(), queries.double()
    recall, precision, rank, chance = [], [], [], []
    for part in torch.arange(n_queries).split(chunk_size):
        wanted, sizes = relevant[part], relevant[part].sum(1)
        similarity = torch.full(wanted.shape, -torch.inf)
        # Rounded from float64, so that equal embeddings tie exactly.
        similarity[:, columns] = (queries[part] @ audio.T).float()
        scores = score_queries(similarity, wanted)
        recall.append(scores.recall)
        rank.append(scores.rank)
        precision.append(precision_sum(similarity, wanted & similarity.isfinite(), RELEVANCE_AT) / sizes)
        chance.append(precision_sum(torch.zeros(wanted.shape), wanted, RELEVANCE_AT) / sizes)
    found = torch.cat(recall, 1)
    return RelevanceScores(
        {
            f"t2a_map{RELEVANCE_AT}": torch.cat(precision).numpy(),
            **{f"t2a_r{k}": values.numpy() for k, values in zip(RECALL_AT, found, strict=True)},
            "t2a_median_rank": torch.cat(rank).numpy(),
        },
        {
            "queries": float(n_queries),
            "relevant_pairs": float(relevant.sum()),
            f"chance_t2a_map{RELEVANCE_AT}": float(torch.cat(chance).mean()),
        },
    )


def format_relevance(metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]] | None = None) -> str:
    """An aligned table in percent (median rank excepted)."""
    names = [f"t2a_map{RELEVANCE_AT}", *(f"t2a_r{k}" for k in RECALL_AT)]
    rows: list[tuple[str, ...]] = [
        ("", f"mAP@{RELEVANCE_AT}", *(f"R@{k}" for k in RECALL_AT), "median rank"),
        ("relevance sets", *(f"{100 * metrics[name]:.1f}" for name in names), f"{metrics['t2a_median_rank']:g}"),
    ]
    if intervals:
        shares = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in (intervals[name] for name in names)]
        low, high = intervals["t2a_median_rank"]
        rows.append(("  95 % interval", *shares, f"[{low:g}, {high:g}]"))
    rows.append(("  chance", f"{100 * metrics[f'chance_t2a_map{RELEVANCE_AT}']:.1f}", "", "", "", ""))
    return aligned(rows)


def _statistic(name: str) -> Callable[[np.ndarray], np.floating]:
    return np.median if name.endswith("median_rank") else np.mean


def _name(file: str) -> str:
    # Copies of Clotho differ in the spaces at the ends of names.
    return audio_stem(file.replace("\\", "/").rpartition("/")[2].strip()).strip()


def _rows(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """`(origin, query, files)` of each row."""
    if path.suffix.lower() == ".json":
        try:
            value = json.loads(path.read_bytes(), object_pairs_hook=json_object)
        except (OSError, ValueError, RecursionError) as error:
            raise RelevanceError(f"{path}: not JSON ({error})") from error
        if isinstance(value, RepeatedKey):
            raise RelevanceError(f"{path}: the query {value.key[:80]!r} appears twice")
        if isinstance(value, dict) and not isinstance(value.get("data"), list):
            for query, files in value.items():
                yield path.name, query, _files(files)
            return
    try:
        for origin, row in read_rows(path):
            if isinstance(row, Rejection):
                raise RelevanceError(f"{path.parent / origin}: {row.detail}")
            query, files = (next((name for name in names if name in row), None) for names in _COLUMNS)
            if query is None or files is None:
                raise RelevanceError(
                    f"{path}: its columns are {', '.join(row)}; it needs one of {', '.join(_COLUMNS[0])} "
                    f"and one of {', '.join(_COLUMNS[1])}"
                )
            if graded := [name for name in _GRADE_COLUMNS if name in row]:
                raise RelevanceError(
                    f"{path}: the column {graded[0]!r} grades relevance, but a clip is relevant here or not, as in "
                    "DCASE 2025; keep the rows of relevant clips and remove the column"
                )
            yield origin, str(row[query] or ""), _files(row[files])
    except DatasetError as error:
        raise RelevanceError(str(error)) from error


def _files(cell: Any) -> list[str]:
    """File names of a cell: one, a list, or a list as Python or JSON writes it."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with contextlib.suppress(ValueError, SyntaxError):
            cell = ast.literal_eval(cell.strip())
    names = cell if isinstance(cell, list | tuple) else [cell]
    return [name for name in names if isinstance(name, str) and not is_missing(name)]
