"""Run log: records on disk and in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slap_fast.config.loading import load_run_config
from slap_fast.evaluation.plots import read_log
from slap_fast.training.metrics.gradient_norms import TOWERS
from slap_fast.training.metrics.run_log import EvaluationResult, RunLog
from slap_fast.training.metrics.step_metrics import LOSSES, METRICS, StepMetrics
from slap_fast.training.schedule import StepSettings

CONFIG = load_run_config("quickstart", ["schedule.steps=10"])
SETTINGS = StepSettings(learning_rate=1e-3, teacher_temperature=0.05, ema_momentum=0.99)
SPEED = {"clips_per_second": 12.5, "audio_seconds_per_second": 60.0, "mfu": None}


def report(loss: float) -> StepMetrics:
    values = dict.fromkeys((*LOSSES, *METRICS), loss)
    norms = dict.fromkeys(TOWERS, 1.0)
    return StepMetrics(nonfinite=(), stop=False, values=values, audio_seconds=10.0, grad_norm=2.0, grad_norms=norms)


def write(output: Path, steps: range, loss: float) -> None:
    with RunLog(output, CONFIG, start_step=steps.start - 1, enabled=True) as log:
        for step in steps:
            log.step(step, report(loss), SETTINGS, SPEED, 0)
            log.advance()


def read(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def tensorboard(output: Path) -> list[dict[str, float]]:
    """Scalars by step."""
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    steps: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            steps.setdefault(event.step, {})[name] = event.value
    return [steps[step] for step in sorted(steps)]


def test_a_record_holds_losses_settings_and_speed(tmp_path: Path) -> None:
    write(tmp_path, range(1, 2), 3.0)
    (record,) = read(tmp_path)
    assert {*LOSSES, *METRICS, "step", "learning_rate", "grad_norm", "clips_per_second"} < record.keys()
    assert (record["step"], record["caption"], record["audio_seconds_per_second"]) == (1, 3.0, 60.0)
    assert record["grad_norm/text_encoder"] == 1.0
    assert record["mfu"] is None
    # TensorBoard has every scalar of the log.
    (step,) = tensorboard(tmp_path)
    assert step == {name: pytest.approx(value) for name, value in record.items() if name not in ("step", "mfu")}
    assert load_run_config(str(tmp_path / "config.yaml")) == CONFIG


def test_scores_are_recorded_and_repeated_by_a_run_that_resumes_at_their_step(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3), 1.0)
    with RunLog(tmp_path, CONFIG, start_step=2, enabled=True) as log:
        log.evaluation(2, EvaluationResult({"score": 0.25}, ("step 2: 0.25",)))
        log.evaluation(2, EvaluationResult(notes=("it failed",)))
    assert read(tmp_path)[-1] == {"step": 2, "evaluation/score": 0.25}
    assert read_log(tmp_path / "log.jsonl")[-1]["loss"] == 1.0
    with RunLog(tmp_path, CONFIG, start_step=2, enabled=True):
        assert [record["step"] for record in read(tmp_path)] == [1, 2]


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6), 1.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut short by a crash
    write(tmp_path, range(4, 7), 2.0)
    assert [(record["step"], record["loss"]) for record in read(tmp_path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
        (6, 2.0),
    ]


def test_a_skipped_step_is_recorded_with_its_clips(tmp_path: Path) -> None:
    record = {"step": 2, "skipped": True, "nonfinite": ["caption"], "clips": ["a", "b"]}
    with RunLog(tmp_path, CONFIG, start_step=0, enabled=True) as log:
        log.skipped(record)
    assert read(tmp_path) == [record]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "output", CONFIG, start_step=0, enabled=False) as log:
        log.step(1, report(1.0), SETTINGS, SPEED, 0)
        log.advance()
        log.say("nothing")
    assert not (tmp_path / "output").exists()
