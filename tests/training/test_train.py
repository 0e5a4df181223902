"""`slap_fast/train.py` as users run it: launched, stopped, continued, finished, and failing."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slap_fast import cli
from slap_fast.models.slap import SLAP
from slap_fast.training.metrics.gradient_norms import TOWERS
from slap_fast.training.metrics.step_metrics import DETAILS, METRICS
from tests.training.ranks import ROOT, finish, free_port, start, start_program, start_ranks, tail
from tests.training.tiny_run import STEPS, write_dataset, write_recipe

COUNTED = ("clips_per_second", "data_wait_seconds", "dropped_clips", *(f"grad_norm/{tower}" for tower in TOWERS))
TRAIN = "slap_fast.train"
SCRIPT = [sys.executable, str(ROOT / "slap_fast" / "train.py")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dataset") / "train")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


def launch(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    flags = ["-q", "--num_accelerators", "2", "--master_port", str(free_port())]
    return start([launcher, *flags, SCRIPT[1], *arguments], log)


def records(output: Path, key: str) -> list[dict[str, float]]:
    """The records of the log that have `key`, at most one per step."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    found = [record for record in lines if key in record]
    assert [record["step"] for record in found] == sorted({record["step"] for record in found})
    return found


def losses(output: Path) -> dict[int, float]:
    found = records(output, "loss")
    for record in found:
        assert all(math.isfinite(record[metric]) for metric in (*METRICS, *DETAILS, *COUNTED))
        assert record["padding_waste"] == 0.0
        assert record["skipped_steps"] == 0
        assert record["memory_gib"] > 0.05
        assert 0.0 < record["mfu"] < 1.0
    return {int(record["step"]): record["loss"] for record in found}


def test_a_run_stopped_by_a_signal_and_continued_gives_the_same_model_as_one_that_was_not(
    dataset: Path, recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    other = shutil.copytree(dataset, tmp_path / "other dataset")
    mixture = f"data.train=[{{folder: {dataset}, weight: 2}}, {{folder: {other}, weight: 1}}]"
    arguments = [f"recipe={recipe}", mixture, "data.max_duration=0.5", "data.crop_above_max_duration=true"]
    assert finish(start_ranks(TRAIN, [[*arguments, f"training.output={straight}"]] * 2, log), log) == [0, 0]

    # Only this run is evaluated, which must not change its result.
    arguments += [f"evaluation.dataset={dataset}", "evaluation.every=2", f"training.output={stopped}"]
    processes = start_ranks(TRAIN, [arguments] * 2, log)
    deadline = time.monotonic() + 90
    while not (stopped / "log.jsonl").exists() or len((stopped / "log.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline, tail(log)
        time.sleep(0.02)
    # One rank gets the signal; both must stop after the same step.
    os.kill(processes[1].pid, signal.SIGTERM)
    assert finish(processes, log) == [0, 0], tail(log)
    assert "the same command continues" in tail(log)
    assert not (stopped / "model").exists()
    before = losses(stopped)
    assert 2 <= len(before) < STEPS

    kept = json.loads((stopped / "best" / "best.json").read_text())
    assert finish([launch(arguments, log)], log) == [0], tail(log)
    assert f"continuing after step {len(before)}" in log.read_text()
    assert losses(stopped) == losses(straight)
    assert sorted(losses(stopped)) == list(range(1, STEPS + 1))

    model = SLAP.from_pretrained(stopped / "model")
    embeddings = model.encode_text(["noise number 3", "a dog"])
    assert embeddings.shape == (2, 16)
    unstopped = SLAP.from_pretrained(straight / "model").state_dict()
    assert all((unstopped[name] == value).all() for name, value in model.state_dict().items())

    scores = {record["step"]: record for record in records(stopped, "evaluation/score")}
    assert sorted(scores) == list(range(2, STEPS + 1, 2))
    best_step = max(scores, key=lambda step: (scores[step]["evaluation/score"], -step))
    best = json.loads((stopped / "best" / "best.json").read_text())
    assert (best["step"], best["score"]) == (best_step, scores[best_step]["evaluation/score"])
    assert best["score"] == (best["scores"]["t2a_r1"] + best["scores"]["a2t_r1"]) / 2
    assert best["score"] >= kept["score"]
    command = [
        "evaluate",
        str(stopped / "best"),
        str(dataset),
        "--out",
        str(tmp_path / "scores"),
        "--no-plots",
        "--quiet",
    ]
    assert cli.main(command) == 0
    retrieval = json.loads((tmp_path / "scores" / "metrics.json").read_text())["retrieval"]
    assert best["scores"] == {"score": best["score"]} | {
        name: retrieval[name] for name in best["scores"].keys() - {"score"}
    }


def test_a_run_continues_with_other_ranks_and_stages_without_repeating_or_missing_a_clip(
    dataset: Path, recipe: Path, tmp_path: Path
) -> None:
    # An epoch has three steps, so that each change comes in the middle of one.
    common = [f"recipe={recipe}", f"data.train={dataset}", "schedule.batch_size=4", "training.precision=fp32"]
    changing = [*common, f"training.output={tmp_path / 'changing'}", "training.save_every=1"]
    runs = [
        (1, [*common, f"training.output={tmp_path / 'straight'}"]),
        (2, [*changing, "training.zero_stage=3", "training.stop_after=2"]),
        (1, [*changing, "training.zero_stage=0", "training.stop_after=5", "training.keep_every=3"]),
        (2, [*changing, "training.zero_stage=1", "training.keep_every=3"]),
    ]
    folder, log = tmp_path / "trainings", tmp_path / "log.txt"
    folder.mkdir()
    (folder / "trainings.json").write_text(json.dumps(runs))
    assert finish([start_program("tests.training.phases", [str(tmp_path), "trainings"], log)], log) == [0], tail(log)

    def clips(run: int) -> list[list[int]]:
        ranks = [json.loads(path.read_text()) for path in sorted((folder / f"clips-{run}").iterdir())]
        return [sorted(clip for part in step for clip in part) for step in zip(*ranks, strict=True)]

    assert clips(1) + clips(2) + clips(3) == clips(0)
    assert [len(clips(run)) for run in range(4)] == [STEPS, 2, 3, 3]
    assert losses(tmp_path / "changing") == pytest.approx(losses(tmp_path / "straight"), rel=1e-4)
    kept = sorted(path.name for path in (tmp_path / "changing" / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:08d}" for step in (3, 6, 7, 8)]

    # The checkpoint of the last step holds the model of the end of the run.
    assert cli.main(["export", str(tmp_path / "changing"), "--out", str(tmp_path / "exported")]) == 0
    for path in (tmp_path / "changing" / "model").rglob("*"):
        exported = tmp_path / "exported" / path.relative_to(tmp_path / "changing" / "model")
        assert exported.is_dir() if path.is_dir() else exported.read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("file", "error"), [("dataset.json", "DatasetError"), ("shard-000000.tar", "TooManyBadClipsError")]
)
def test_an_error_on_one_rank_ends_them_all(dataset: Path, recipe: Path, tmp_path: Path, file: str, error: str) -> None:
    log, damaged = tmp_path / "log.txt", tmp_path / "damaged"
    shutil.copytree(dataset, damaged)
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(content[:128] + bytes(len(content) - 128))
    arguments = [f"recipe={recipe}", f"training.output={tmp_path / 'run'}", "loading.max_consecutive_failures=3"]
    began = time.monotonic()
    processes = start_ranks(TRAIN, [[*arguments, f"data.train={folder}"] for folder in (dataset, damaged)], log)
    assert finish(processes, log) == [1, 1]
    # Immediately, not after the timeout of a collective call.
    assert time.monotonic() - began < 55.0
    assert f"rank 1: {error}: " in log.read_text()
    assert not (tmp_path / "run" / "model").exists()


def test_the_error_for_a_misspelled_key_is_one_line(recipe: Path) -> None:
    result = subprocess.run(
        [*SCRIPT, f"recipe={recipe}", "training.zero_stge=2"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "rank 0: ConfigError: argument 'training.zero_stge=2': unknown key 'training.zero_stge'; "
        "did you mean 'training.zero_stage'?"
    )
