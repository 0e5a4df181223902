"""Results of a training run: its log, its configuration, and what `evaluate` and `probe` wrote beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from slap_fast.errors import SlapFastError, one_line

_SCORES = "evaluation/"
# Files below the output folder where the commands write by default.
_RESULTS = ("evaluation/metrics.json", "evaluation/suite.json", "probe/probe.json", "probe/probe-frames.json")
# The scores of a section that are quoted; its other numbers are details.
_QUOTED = ("t2a_r1", "a2t_r1", "t2a_map16", "accuracy_at_1", "map", "cider_d", "spice", "spider", "fense")
_FRAME_SCORES = ("segment_f1", "auroc")


class RunError(SlapFastError, ValueError):
    """A run that cannot be compared."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: unique among the compared runs.
        series: step and value, ascending, of each logged value that is a number.
        settings: values of config.yaml by key (`schedule.steps`); empty without that file.
        results: scores that commands measured, by name.
        skipped_steps: steps that were not applied, because a loss or gradient was not finite.
        notes: what was not read, in words.
    """

    name: str
    folder: Path
    series: dict[str, list[tuple[int, float]]]
    settings: dict[str, Any] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        return max(points[-1][0] for points in self.series.values())

    def final(self, key: str) -> float | None:
        """Mean of the last tenth of the logged values; None if there is none."""
        points = self.series.get(key, [])
        return fmean(value for _, value in points[-max(1, len(points) // 10) :]) if points else None

    def typical(self, key: str) -> float | None:
        """Median of the logged values."""
        points = self.series.get(key, [])
        return median(value for _, value in points) if points else None

    def best(self, key: str) -> tuple[int, float] | None:
        """Step and value of the highest score; the earliest of equal ones."""
        points = self.series.get(f"{_SCORES}{key}", [])
        return max(points, key=lambda point: point[1]) if points else None

    def scores(self) -> list[str]:
        """Names of the scores during training."""
        return [key.removeprefix(_SCORES) for key in self.series if key.startswith(_SCORES)]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, and name each by as much of its path as distinguishes it.

    Args:
        folders: output folders of training.

    Raises:
        RunError: a folder has no log or no logged step, or is given twice.
    """
    absolute = [folder.resolve() for folder in folders]
    for at, folder in enumerate(absolute):
        if folder in absolute[:at]:
            raise RunError(f"{folders[at]}: given twice; list each run once")
    return [_read(folder, name) for folder, name in zip(folders, _names(absolute), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        length = 1
        while any(other.parts[-length:] == folder.parts[-length:] for other in others) and length < len(folder.parts):
            length += 1
        names.append("/".join(folder.parts[-length:]))
    return names


def _read(folder: Path, name: str) -> Run:
    log = folder / "log.jsonl"
    if not log.is_file():
        hint = ""
        if (folder.resolve().parent / "log.jsonl").is_file():
            hint = f"; did you mean {folder.parent}?"
        raise RunError(f"{folder}: no log.jsonl; give the output folder of a training run{hint}")
    steps: dict[int, dict[str, Any]] = {}
    skipped, damaged = set(), []
    for number, line in enumerate(log.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        record = _record(line)
        if record is None:
            damaged.append(number)
        elif record.get("skipped") is True:
            skipped.add(record["step"])
        else:
            steps.setdefault(record["step"], {}).update(record)  # the later one of a step that was logged twice
    if not steps:
        raise RunError(f"{log}: no logged step; the run has not got that far, or the file is damaged")
    series: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(steps):
        for key, value in steps[step].items():
            if key != "step" and _is_number(value):
                series.setdefault(key, []).append((step, float(value)))
    if not series:
        raise RunError(f"{log}: its records have no number besides the step")
    notes = []
    if damaged:
        listed = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{log}: damaged lines left out: {len(damaged)} (line {listed})")
    settings = _settings(folder / "config.yaml", notes)
    results = {key: value for file in _RESULTS for key, value in _results(folder / file, notes)}
    return Run(name, folder, series, settings, results, len(skipped), notes)


def _record(line: str) -> dict[str, Any] | None:
    """A record of a log; None for a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


def _settings(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = [content[part] for part in ("recipe", "efficiency")]
        return {key: value for part in parts for key, value in _leaves(part)}
    except FileNotFoundError:
        reason = "not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = f"cannot be read ({one_line(error)})"
    notes.append(f"{path}: {reason}; the settings of this run are not compared")
    return {}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _results(path: Path, notes: list[str]) -> Iterator[tuple[str, float]]:
    """Quoted scores of a file of `evaluate` or `probe`, named after their dataset."""
    if not path.is_file():
        return
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = list(_probed(report) if path.parent.name == "probe" else _evaluated(report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{path}: cannot be read ({one_line(error)}); its scores are left out")
        return
    yield from found


def _evaluated(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    dataset = Path(str(report.get("dataset", ""))).name
    yield from _quoted(f"{dataset} retrieval", report.get("retrieval"))
    yield from _quoted(f"{dataset} relevance", report.get("relevance"))
    yield from _quoted(f"{dataset} captioning", report.get("captioning"))
    if (zero_shot := report.get("zero_shot")) is not None:
        yield from _quoted(f"{Path(str(zero_shot.get('source', ''))).name} zero-shot", zero_shot)
    for suite in (report, report.get("suite")):  # suite.json, and metrics.json
        if isinstance(suite, dict) and isinstance(suite.get("results"), dict):
            for task, result in suite["results"].items():
                yield from _task(task, result)


def _task(task: str, result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for section in ("zero_shot", "retrieval", "captioning"):
        yield from _quoted(f"{task} {section.replace('_', '-')}", result.get(section))


def _quoted(name: str, section: Any) -> Iterator[tuple[str, float]]:
    if isinstance(section, dict):
        numbers = section | (section["scores"] if isinstance(section.get("scores"), dict) else {})
        yield from ((f"{name} {key}", float(numbers[key])) for key in _QUOTED if _is_number(numbers.get(key)))


def _probed(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for data in report.get("data", ()):
        for kind in ("linear", "knn"):
            yield f"{data['name']} probe {kind} {data['metric']}", float(data[kind]["mean"])
    if "segment_f1" in report:
        name = Path(str(report["test"])).name
        yield from ((f"{name} frame probe {key}", float(report[key])) for key in _FRAME_SCORES)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
