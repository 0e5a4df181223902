"""Comparison table: values of training, scores and differing settings in rows, runs in columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slap_fast.evaluation.comparison.run import Run

LOSSES = ("loss", "contrastive", "self_distillation", "caption")
_SCORE = "score"
# Settings that say nothing about a run.
_NAMES = ("training.output", "logging.run_name")
Value = float | int | str | None


@dataclass(frozen=True)
class Row:
    """One value of each run; None where a run does not have it."""

    name: str
    values: list[Value]

    @property
    def is_empty(self) -> bool:
        return all(value is None for value in self.values)


def comparison_rows(runs: Sequence[Run]) -> list[Row]:
    """Rows that at least one run has a value for."""

    def row(name: str, value: Callable[[Run], Value]) -> Row:
        return Row(name, [value(run) for run in runs])

    def setting(run: Run, key: str) -> Value:
        value = run.settings.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    rows = [
        row("last step", lambda run: run.last_step),
        row("steps of the schedule", lambda run: setting(run, "schedule.steps")),
    ]
    rows += [row(f"{name}, final", lambda run, name=name: run.final(name)) for name in LOSSES]  # type: ignore[misc]
    rows += [
        row("score, last", lambda run: _last(run, _SCORE)),
        row("score, best", lambda run: _at_best(run, _SCORE)),
        row("step of the best score", lambda run: found[0] if (found := run.best(_SCORE)) else None),
    ]
    for key in dict.fromkeys(key for run in runs for key in run.scores() if key != _SCORE):
        rows.append(row(f"{key} at the best score", lambda run, key=key: _at_best(run, key)))  # type: ignore[misc]
    for key in dict.fromkeys(key for run in runs for key in run.results):
        rows.append(row(key, lambda run, key=key: run.results.get(key)))  # type: ignore[misc]
    rows += [
        row("clips/s, median", lambda run: run.typical("clips_per_second")),
        row("audio seconds/s, median", lambda run: run.typical("audio_seconds_per_second")),
        row("mfu, median", lambda run: run.typical("mfu")),
        row(
            "memory, GiB, most", lambda run: max((value for _, value in run.series.get("memory_gib", [])), default=None)
        ),
        row("skipped steps", lambda run: run.skipped_steps),
    ]
    return [one for one in rows if not one.is_empty]


def setting_rows(runs: Sequence[Run]) -> list[Row]:
    """Settings that differ between the runs that have a config.yaml; of a missing key the value is `-`."""
    configured = [run for run in runs if run.settings]
    rows = []
    for key in dict.fromkeys(key for run in configured for key in run.settings):
        values = [_setting(run, key) for run in configured]
        if key not in _NAMES and len(set(values)) > 1:
            rows.append(Row(key, [_setting(run, key) if run.settings else None for run in runs]))
    return rows


def cells(rows: Sequence[Row], runs: Sequence[Run]) -> list[list[str]]:
    """The rows as text, under a header of run names."""
    return [["", *(run.name for run in runs)], *([row.name, *map(_text, row.values)] for row in rows)]


def to_markdown(tables: Sequence[tuple[str, Sequence[Row]]], runs: Sequence[Run]) -> str:
    """Tables with their titles, in Markdown."""
    lines = []
    for title, rows in tables:
        header, *body = [[cell.replace("|", r"\|") for cell in row] for row in cells(rows, runs)]
        lines += [f"## {title}", "", _line(header), _line(["---", *["---:"] * len(runs)]), *map(_line, body), ""]
    return "\n".join(lines)


def to_csv(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """One line per value, with all digits; empty where a run does not have it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["", *(run.name for run in runs)])
    writer.writerows([row.name, *row.values] for row in rows)
    return file.getvalue()


def to_json(runs: Sequence[Run], rows: Sequence[Row], settings: Sequence[Row]) -> dict[str, Any]:
    names = [run.name for run in runs]

    def by_run(table: Sequence[Row]) -> dict[str, dict[str, Value]]:
        return {row.name: dict(zip(names, row.values, strict=True)) for row in table}

    return {
        "runs": {run.name: {"folder": str(run.folder), "notes": run.notes} for run in runs},
        "values": by_run(rows),
        "settings": by_run(settings),
    }


def _at_best(run: Run, key: str) -> float | None:
    """The value at the step of the best score, as `best/` has it."""
    found = run.best(_SCORE)
    return None if found is None else dict(run.series.get(f"evaluation/{key}", [])).get(found[0])


def _last(run: Run, key: str) -> float | None:
    points = run.series.get(f"evaluation/{key}")
    return points[-1][1] if points else None


def _setting(run: Run, key: str) -> str:
    return str(run.settings[key]) if key in run.settings else "-"


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(row)} |"


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
