"""Table of a suite: each score beside the published one, as text, Markdown and rows for a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from slap_fast.evaluation.caption_metrics import METRIC_TITLES
from slap_fast.evaluation.retrieval import aligned
from slap_fast.evaluation.suite.paper import SCORE_TITLES, SUITES, Published, Task
from slap_fast.evaluation.suite.running import SuiteResult

_HEADER = ("dataset", "score", "clips", "paper", "this model", "95 % interval", "difference", "paper, tuned")


class Row(NamedTuple):
    """One score, in percent (CIDEr-D and SPICE: times 100).

    Attributes:
        value: None: not computed, because of `note`.
        interval: 95 %, or None.
    """

    dataset: str
    score: str
    clips: int | None
    published: Published
    value: float | None
    interval: tuple[float, float] | None
    note: str = ""


def suite_rows(result: SuiteResult) -> list[Row]:
    """The rows of the tasks that ran."""
    return [row for task in SUITES[result.suite] if task.name in result.results for row in _rows(result, task)]


def _rows(result: SuiteResult, task: Task) -> Iterator[Row]:
    scores = result.results[task.name]
    parts = [scores[name] for name in ("zero_shot", "retrieval", "captioning") if name in scores]
    for name, published in task.published.items():
        part = next((part for part in parts if part.get(name) is not None), None)
        if part is None:
            of_captions = scores.get("captioning", {}).get("unavailable", {})
            section = "captioning" if name in METRIC_TITLES else "retrieval"
            note = of_captions.get(name) or scores.get(f"{section}_unavailable", "not computed")
            yield Row(task.title, SCORE_TITLES[name], None, published, None, None, note)
        else:
            bounds = part.get("intervals", {}).get(name)
            interval = None if bounds is None else (100 * bounds[0], 100 * bounds[1])
            yield Row(task.title, SCORE_TITLES[name], int(part["clips"]), published, 100 * part[name], interval)


def format_suite(result: SuiteResult) -> str:
    """The table and what is not in it, as plain text."""
    rows = suite_rows(result)
    table = [aligned([_HEADER, *map(_cells, rows)])] if rows else []
    return "\n".join([*table, *_notes(result, rows)])


def markdown_suite(result: SuiteResult, model: str) -> str:
    """The table as a Markdown page, with the prompts and what is not in it."""
    rows = suite_rows(result)
    lines = [f"# Suite `{result.suite}`: {model}", ""]
    if rows:
        lines += ["| " + " | ".join(_HEADER) + " |", "|---|---|" + "---:|" * (len(_HEADER) - 2)]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(result, rows))]) + "\n"


def _cells(row: Row) -> Sequence[str]:
    tuned = "" if row.published.tuned is None else f"{row.published.tuned:.1f} ({row.published.how})"
    start = (row.dataset, row.score, "" if row.clips is None else str(row.clips), f"{row.published.value:.1f}")
    if row.value is None:
        return (*start, "-", "", "", tuned)
    interval = "" if row.interval is None else f"[{row.interval[0]:.1f}, {row.interval[1]:.1f}]"
    return (*start, f"{row.value:.1f}", interval, f"{row.value - row.published.value:+.1f}", tuned)


def _notes(result: SuiteResult, rows: Sequence[Row]) -> list[str]:
    titles = {task.name: task.title for task in SUITES[result.suite]}
    notes = []
    for name, scores in result.results.items():
        if (zero_shot := scores.get("zero_shot")) is not None:
            prompts = zero_shot["prompts"]
            notes.append(f"{titles[name]}: prompts {prompts['name']!r}: {', '.join(map(repr, prompts['templates']))}")
            if left_out := zero_shot["left_out"]:
                first = left_out[0]
                notes.append(
                    f"{titles[name]}: not used: {len(left_out)}; the first: {first['name']} ({first['reason']})"
                )
        if others := scores["other_copies"]:
            notes.append(f"{titles[name]}: {scores['paths'][0]} is scored; other copies are not: {', '.join(others)}")
    notes += [f"{row.dataset}: no {row.score}: {row.note}" for row in rows if row.value is None]
    notes += [f"{titles[name]}: not there; get it from {source}" for name, source in result.missing.items()]
    return notes + [f"{titles[name]}: FAILED: {reason}" for name, reason in result.failed.items()]
