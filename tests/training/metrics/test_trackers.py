"""Experiment trackers with the real libraries: Weights & Biases offline, and trackio's local store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slap_fast.config.loading import ConfigError, load_run_config
from slap_fast.config.recipe import LoggingConfig
from slap_fast.errors import MissingExtraError
from slap_fast.training.metrics import trackers
from slap_fast.training.metrics.run_log import RunLog
from slap_fast.training.metrics.trackers import require_trackers

ROOT = Path(__file__).parents[3]

# Two parts of a run: the second resumes after step 3, although 5 steps and their scores were logged.
WRITE = """
import sys
from pathlib import Path
from typing import Any
from slap_fast.config.loading import load_run_config
from slap_fast.training.metrics.run_log import EvaluationResult, RunLog
from tests.training.metrics.test_run_log import SETTINGS, SPEED, report

output, tracker = Path(sys.argv[1]), sys.argv[2]
config = load_run_config("quickstart", ["schedule.steps=10", f"logging.tracker={tracker}"])
for start, end in ((0, 5), (3, 7)):
    with RunLog(output, config, start_step=start, enabled=True) as log:
        for step in range(start + 1, end + 1):
            log.step(step, report(float(start + step)), SETTINGS, SPEED, 0)
            log.evaluation(step, EvaluationResult({"score": step / 10}))
"""


def write(output: Path, tracker: str, **environment: str) -> str:
    """Runs WRITE; returns what it prints to stderr."""
    result = subprocess.run(
        [sys.executable, "-c", WRITE, str(output), tracker],
        cwd=ROOT,
        env=os.environ | {"HOME": str(output.parent), "WANDB_SILENT": "true"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def records(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, payload = path.read_bytes(), 7, b""  # after the header of the file
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block ends in padding
            at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        payload += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(payload)  # type: ignore[attr-defined]
            payload = b""


def test_a_resumed_run_continues_in_each_tracker_without_repeated_steps(tmp_path: Path) -> None:
    store = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline"}
    printed = write(tmp_path / "mine", "[trackio, wandb]", **store)
    for name in ("wandb", "trackio"):
        assert printed.count(f"{name} has the steps until 5 already") == 1
    assert not (tmp_path / "mine" / "tensorboard").exists()
    assert [record["loss"] for record in records(tmp_path / "mine") if "loss" in record] == [1, 2, 3, 7, 8, 9, 10]

    stored = json.loads((tmp_path / "mine" / "trackers.json").read_text())
    parts = sorted((tmp_path / "mine" / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.stem for path in parts} == {f"run-{stored['wandb']['id']}"}
    found = [record for path in parts for record in wandb_records(path)]
    (named,) = {record.run.display_name for record in found if record.HasField("run")}
    assert named == "mine"
    config = {item.key: item.value_json for record in found for item in record.run.config.update}
    assert json.loads(config["recipe"])["schedule"]["steps"] == 10
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == [
        *((step, float(step)) for step in range(1, 6)),
        (6, 9.0),
        (7, 10.0),
    ]
    assert [row["evaluation/score"] for row in history if "evaluation/score" in row] == [
        step / 10 for step in range(1, 8)
    ]

    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as storage; project = 'slap-fast'\n"
        "(run,) = storage.get_run_records(project)\n"
        "print(json.dumps([run, storage.get_logs(project, run['name'])]))"
    )
    command = [sys.executable, "-c", read]
    run, logs = json.loads(subprocess.check_output(command, env=os.environ | store, text=True).splitlines()[-1])
    assert (run["id"], run["name"]) == (stored["trackio"]["id"], stored["trackio"]["name"])
    assert [(row["step"], row["loss"]) for row in logs if "loss" in row] == [
        (row["step"], row["loss"]) for row in history if "loss" in row
    ]


def test_a_tracker_that_cannot_start_is_named_and_training_goes_on(tmp_path: Path) -> None:
    printed = write(tmp_path / "mine", "[tensorboard, wandb]", WANDB_MODE="online")  # without a login
    assert printed.count("wandb failed and is left out from here on (No API key configured") == 2  # once in each part
    assert len(records(tmp_path / "mine")) == 13
    assert list((tmp_path / "mine" / "tensorboard").iterdir())


def test_a_tracker_that_fails_during_training_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        run = None

        def __init__(self, *_: object, **__: object) -> None: ...

        def log(self, step: int, values: object) -> None:
            raise ConnectionError("the network\nis down")

    monkeypatch.setattr(trackers, "_opener", lambda name: Failing)
    with RunLog(tmp_path, load_run_config("quickstart"), start_step=0, enabled=True) as log:
        for step in (1, 2):
            log._trackers.log("steps", {"step": step, "loss": 1.0})
    assert capsys.readouterr().err.count("failed and is left out from here on (the network is down)") == 1


def test_a_tracker_that_is_not_installed_is_reported_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # what the library leaves behind in a working folder
    with pytest.raises(MissingExtraError, match=r"'wandb', which is not installed: pip install .slap-fast\[trackers\]"):
        require_trackers(LoggingConfig(tracker=("tensorboard", "wandb")))
    require_trackers(LoggingConfig())


def test_trackers_are_one_name_or_a_list_of_names() -> None:
    def chosen(value: str) -> tuple[str, ...]:
        return load_run_config("quickstart", [f"logging.tracker={value}"]).efficiency.logging.trackers

    assert load_run_config("quickstart").efficiency.logging.trackers == ("tensorboard",)
    assert (chosen("wandb"), chosen("none"), chosen("[trackio, wandb]")) == (("wandb",), (), ("trackio", "wandb"))
    for value, message in (
        ("wandbb", "did you mean 'wandb'"),
        ("[trackio, mlflow]", r"tracker\[1\] is 'mlflow'; choose one of none, tensorboard, trackio, wandb"),
        ("[none, wandb]", "list each once, or 'none' alone"),
        ("[]", "tracker lists nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            chosen(value)
