"""Resuming: what a run must share with its checkpoint, what it reports, and the lock of its output folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slap_fast.config.loading import to_yaml
from slap_fast.data.loading.loader import TooManyBadClipsError
from slap_fast.models.slap import SLAP
from slap_fast.training.checkpoint import output_folder
from slap_fast.training.checkpoint.compatibility import model_difference, recipe_changes, resume_changes
from slap_fast.training.checkpoint.output_folder import OutputError, finished_steps, lock_output_folder
from slap_fast.training.distributed.heartbeat import RendezvousError
from slap_fast.training.distributed.process_group import OtherRankFailedError
from slap_fast.training.failure import is_retryable
from slap_fast.training.metrics.nonfinite import DivergedError
from tests.training import tiny
from tests.training.ranks import finish, start_program, tail
from tests.training.tiny_run import write_dataset, write_recipe

STEPS = 4


def model_files(**changed: Any) -> dict[str, bytes]:
    """The files of a model without its weights, with values changed by `file__key`."""
    files: dict[str, Any] = {
        "config.json": {"audio": {"heads": 2, "width": 16}, "text": {"pretrained": None, "max_length": 16}},
        "text_config/config.json": {"norm_eps": 1e-5, "transformers_version": "5.0"},
        "tokenizer/tokenizer.json": {
            "truncation": None,
            "normalizer": {"type": "NFC"},
            "added_tokens": [{"id": 0, "content": "[CLS]"}],
            "model": {"vocab": {"a": 1, "b": 2}},
        },
        "tokenizer/tokenizer_config.json": {"cls_token": "[CLS]"},
    }
    names = {"config": "config.json", "text": "text_config/config.json", "words": "tokenizer/tokenizer.json"}
    names["roles"] = "tokenizer/tokenizer_config.json"
    for place, value in changed.items():
        file, *parents, last = place.split("__")
        node = files[names[file]]
        for parent in parents:
            node = node[parent]
        node[last] = value
    return {name: json.dumps(content).encode() for name, content in files.items()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"config__text__pretrained": "other", "text__transformers_version": "6", "words__truncation": {}}, None),
        ({"config__audio__heads": 4}, "model.audio.heads is 2 in the checkpoint and 4 in this run"),
        ({"text__norm_eps": 1e-6}, "the text encoder's norm_eps is 1e-05 in the checkpoint and 1e-06 in this run"),
        (
            {"words__model__vocab": {"b": 1, "a": 2}},
            "2 tokens have other ids; token 1 is 'a' in the checkpoint and 'b' in this run",
        ),
        (
            {"words__model__vocab": {"a": 1, "c": 2}},
            "2 tokens have other ids; token 2 is 'b' in the checkpoint and 'c' in this run",
        ),
        ({"words__normalizer": None}, "the tokenizer differs in its normalizer"),
        ({"roles__cls_token": "a"}, "its cls_token is '[CLS]' in the checkpoint and 'a' in this run"),
    ],
)
def test_a_difference_that_makes_the_weights_useless_is_found(changed: dict[str, Any], message: str | None) -> None:
    found = model_difference(model_files(), model_files(**changed))
    assert found is None if message is None else message in str(found)


def test_changes_are_listed_and_keys_of_other_versions_are_ignored() -> None:
    saved = "recipe: {schedule: {seed: 0, batch_size: 6}, data: {train: A}, old: 1}\nefficiency: {training: {zero: 1}}"
    own = "recipe: {schedule: {seed: 0, batch_size: 4}, data: {train: B}, new: 1}\nefficiency: {training: {zero: 2}}"
    assert recipe_changes(saved, own) == ["data.train 'A' -> 'B'", "schedule.batch_size 6 -> 4"]
    (note,) = resume_changes(saved, own, ["8 clips"], ["9 clips"])
    assert "schedule.batch_size 6 -> 4, the training data: 8 clips -> 9 clips; the order of clips changes" in note
    assert resume_changes(saved, saved, ["8 clips"], ["8 clips"]) == []
    # The same clips in another folder.
    (note,) = resume_changes(saved, saved.replace("train: A", "train: B"), ["8 clips"], ["8 clips"])
    assert note == "changed since the checkpoint: data.train 'A' -> 'B'"


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The outputs of several runs, one after the other in the same output folder, and that folder."""
    folder = tmp_path_factory.mktemp("continuations")
    data = write_dataset(tmp_path_factory.mktemp("source"), folder / "A")
    other = shutil.copytree(data, folder / "B")
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(info | {"mel_mean": info["mel_mean"] + 1.0}))
    words = shutil.copytree(data / "tokenizer", folder / "words") / "tokenizer.json"
    root = json.loads(words.read_bytes())
    vocabulary = root["model"]["vocab"]
    vocabulary["a"], vocabulary["n"] = vocabulary["n"], vocabulary["a"]
    words.write_text(json.dumps(root))
    recipe = write_recipe(folder / "tiny.yaml", steps=STEPS, zero_stage=0)
    common = [f"recipe={recipe}", f"training.output={folder / 'run'}"]
    first, second = [*common, f"data.train={data}"], [*common, f"data.train={other}", "schedule.seed=5"]
    runs = [
        [*first, "training.stop_after=2"],
        [*first, f"data.tokenizer={words.parent}"],
        [*first, "model.audio.global_every=1"],
        [*second, "schedule.batch_size=4", "training.stop_after=3"],
        [*second, "schedule.batch_size=4"],
        [*second, "schedule.batch_size=4"],
        [*first, "schedule.batch_size=4"],
        [*second, "schedule.batch_size=4", f"schedule.steps={STEPS + 2}"],
    ]
    (folder / "continuations").mkdir()
    (folder / "continuations" / "continuations.json").write_text(json.dumps(runs))
    log = folder / "log.txt"
    process = start_program("tests.training.phases", [str(folder), "continuations"], log)
    assert finish([process], log) == [0], tail(log)
    outputs = [(folder / "continuations" / f"output-{run}.txt").read_text() for run in range(len(runs))]
    return outputs, folder / "run"


def test_another_tokenizer_or_model_is_rejected(continued: tuple[list[str], Path]) -> None:
    _, tokenizer, model, *_ = continued[0]
    assert "CheckpointError: " in tokenizer
    assert "is of another model: the tokenizer differs: 2 tokens have other ids; token " in tokenizer
    assert "CheckpointError: " in model
    assert "is of another model: model.audio.global_every is 3 in the checkpoint and 1 in this run" in model


def test_changed_data_seed_and_batch_size_are_reported_and_the_earlier_configuration_is_kept(
    continued: tuple[list[str], Path],
) -> None:
    (_, _, _, output, *_), run = continued
    assert "continuing after step 2" in output
    for change in (
        "/A' -> '",
        "schedule.batch_size 6 -> 4",
        "schedule.seed 0 -> 5",
        "the training data: 12 clips of",
        "clips may repeat or be left out in this epoch",
        "log-mel values are normalized as before",
    ):
        assert change in output, change
    assert "batch_size: 6" in (run / "config-until-step-00000002.yaml").read_text()
    assert "batch_size: 4" in (run / "config.yaml").read_text()


def test_a_complete_run_is_reported_rejects_another_recipe_and_continues_for_more_steps(
    continued: tuple[list[str], Path],
) -> None:
    (_, _, _, _, _, complete, other, more), run = continued
    assert f"is complete after {STEPS} steps" in complete
    assert "OutputError: " in other
    assert "is complete, but of another recipe: data.train " in other
    assert "schedule.seed 5 -> 0" in other
    assert f"continuing after step {STEPS}" in more
    assert f"its model is kept as {run / f'model-step-{STEPS:08d}'}" in more
    assert f"schedule.steps {STEPS} -> {STEPS + 2}" in more
    models = [SLAP.from_pretrained(run / name) for name in ("model", f"model-step-{STEPS:08d}")]
    assert any((a != b).any() for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 3))


def test_a_complete_run_without_checkpoints_cannot_be_continued(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = tiny.run_config(tmp_path)
    for text in ("", "recipe", "recipe: [", to_yaml(config)):
        (tmp_path / "config.yaml").write_text(text)
        assert finished_steps(config) == 20
    (tmp_path / "config.yaml").write_text(to_yaml(config).replace("steps: 20", "steps: 10"))
    with pytest.raises(OutputError, match=r"schedule\.steps 10 -> 20\. Its checkpoints are gone"):
        finished_steps(config)


def test_a_second_run_in_a_folder_is_rejected_until_the_first_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_folder, "_LOCK_TIMEOUT", 0.3)
    with (
        lock_output_folder(tmp_path / "run"),
        pytest.raises(OutputError, match=rf"run: another run is training here \(process {os.getpid()} on "),
        lock_output_folder(tmp_path / "run"),
    ):
        pass
    # The kernel releases the lock of a killed process.
    code = (
        "import os, sys; from pathlib import Path\n"
        "from slap_fast.training.checkpoint.output_folder import lock_output_folder\n"
        "with lock_output_folder(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False).returncode == -9
    with lock_output_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (OSError(28, "No space left on device"), False),
        (OSError(122, "Disk quota exceeded"), False),
        (PermissionError(13, "Permission denied"), False),
        (OSError(5, "Input/output error"), True),
        (OutputError("another run"), False),
        (DivergedError("20 steps in a row"), False),
        (RendezvousError("rank 1 did not start"), True),
        (OtherRankFailedError("another rank failed"), True),
        (TooManyBadClipsError("the storage is down"), True),
        (RuntimeError("NCCL"), True),
    ],
)
def test_a_restart_is_not_tried_for_bad_input_divergence_or_a_full_disk(error: Exception, retryable: bool) -> None:
    assert is_retryable(error) is retryable
