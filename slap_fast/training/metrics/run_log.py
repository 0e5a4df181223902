"""Run log: JSON lines, experiment trackers and progress bar, written by rank 0."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from slap_fast.config.loading import to_yaml
from slap_fast.config.recipe import RunConfig
from slap_fast.runtime.durable_files import replace_text
from slap_fast.runtime.progress import progress_bar
from slap_fast.training.metrics.step_metrics import LOSSES, StepMetrics
from slap_fast.training.metrics.trackers import Kind, Trackers
from slap_fast.training.schedule import StepSettings

_SCORES = "evaluation/"


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of an evaluation and notes for the console, on rank 0; empty on other ranks."""

    scores: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class RunLog:
    """Writes `config.yaml`, `log.jsonl`, trackers and a progress bar; does nothing if not `enabled`.

    Records after `start_step`, and the scores of `start_step`, are removed from an existing log: the run repeats them.
    A different `config.yaml` is kept as `config-until-step-NNNNNNNN.yaml`.
    """

    def __init__(self, output: Path, config: RunConfig, *, start_step: int, enabled: bool) -> None:
        self._enabled = enabled
        if not enabled:
            return
        output.mkdir(parents=True, exist_ok=True)
        _keep_earlier(output / "config.yaml", to_yaml(config), start_step)
        replace_text(output / "config.yaml", to_yaml(config))
        path = output / "log.jsonl"
        logged = _drop_after(path, start_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._bar = progress_bar(total=config.recipe.schedule.steps, initial=start_step, desc="train", unit="step")
        self._trackers = Trackers(
            output,
            config.efficiency.logging,
            dataclasses.asdict(config),
            start_step=start_step,
            logged=logged,
            say=self.say,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._enabled:
            self._file.close()
            self._trackers.close()
            self._bar.close()

    def advance(self) -> None:
        if self._enabled:
            self._bar.update()

    def step(
        self,
        step: int,
        metrics: StepMetrics,
        settings: StepSettings,
        measured: Mapping[str, float | None],
        skipped_steps: int,
    ) -> None:
        """Record a step that was applied.

        Args:
            measured: rates of `ThroughputMeter.read`, and other values to record; None is written as null.
        """
        if not self._enabled:
            return
        schedule = dataclasses.asdict(settings)
        if "self_distillation" not in metrics.values:
            # There is no teacher.
            del schedule["teacher_temperature"], schedule["ema_momentum"]
        values = {
            "step": step,
            **metrics.values,
            **schedule,
            "grad_norm": metrics.grad_norm,
            **{f"grad_norm/{tower}": norm for tower, norm in metrics.grad_norms.items()},
            **measured,
            "skipped_steps": skipped_steps,
        }
        self._write(values)
        self._trackers.log("steps", values)
        losses = " ".join(f"{name} {values[name]:.3f}" for name in LOSSES if name in values)
        clips, seconds = measured["clips_per_second"], measured["audio_seconds_per_second"]
        self._bar.set_postfix_str(f"{losses}, {clips:.1f} clips/s, {seconds:.0f} audio s/s", refresh=False)

    def evaluation(self, step: int, evaluated: EvaluationResult) -> None:
        """Record the scores of the model after `step` under `evaluation/NAME`."""
        if self._enabled:
            if evaluated.scores:
                scores = {f"{_SCORES}{name}": score for name, score in evaluated.scores.items()}
                self._write({"step": step, **scores})
                self._trackers.log("scores", {"step": step, **scores})
            self.say(*evaluated.notes)

    def skipped(self, record: dict[str, Any]) -> None:
        """Write the record of a skipped step, from `NonFiniteGuard`."""
        if self._enabled:
            self._write(record)
            names, clips = ", ".join(record["nonfinite"]), record["clips"]
            more = f" and {len(clips) - 8} more" if len(clips) > 8 else ""
            self.say(f"step {record['step']} skipped: {names} not finite; clips {', '.join(clips[:8])}{more}")

    def say(self, *messages: str) -> None:
        if self._enabled:
            for message in messages:
                self._bar.write(message, file=sys.stderr)

    def _write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")


def _keep_earlier(path: Path, text: str, step: int) -> None:
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == text:
        return
    kept, count = path.with_name(f"{path.stem}-until-step-{step:08d}.yaml"), 1
    while kept.exists():
        count += 1
        kept = path.with_name(f"{path.stem}-until-step-{step:08d}-{count}.yaml")
    os.replace(path, kept)


def _drop_after(path: Path, step: int) -> dict[Kind, int]:
    """Remove the records after `step`; returns the last step of each kind of record that there was."""
    last: dict[Kind, int] = {}
    if not path.exists():
        return last
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            scores = any(key.startswith(_SCORES) for key in record)
            if record["step"] + scores <= step:
                kept.append(line + "\n")
            kind: Kind = "scores" if scores else "steps"
            last[kind] = max(record["step"], last.get(kind, 0))
        # A line cut short by a crash.
        except (ValueError, KeyError, TypeError):
            continue
    replace_text(path, "".join(kept))
    return last
