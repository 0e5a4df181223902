from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from slap_fast import SLAP, cli
from slap_fast.config.recipe import EvaluationConfig
from slap_fast.evaluation import in_loop
from slap_fast.evaluation.suite import find_datasets
from tests.data.labeled import builders

NAMES = ["Santa Motor.wav", "Blade (Big).wav", "rain.wav"]
CAPTIONS = [[f"sound {number} of {name}" for number in range(5)] for name in NAMES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Public datasets as unpacked; the table of UrbanSound8K is damaged."""
    root = tmp_path_factory.mktemp("public")
    builders.esc50(root / "sounds" / "ESC-50-master")
    builders.gtzan(root / "gtzan")
    builders.ravdess(root / "Audio_Speech_Actors_01-24")
    shutil.copytree(root / "Audio_Speech_Actors_01-24", root / "copy" / "Audio_Speech_Actors_01-24")
    builders.clotho(root / "clotho", NAMES, CAPTIONS)
    builders.write_table(root / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", ("a", "b"), (1, 2))
    return root


@pytest.fixture(scope="module")
def clotho(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "clotho"
    table = root / "clotho" / "clotho_captions_evaluation.csv"
    arguments = ["prepare", str(table), "--out", str(out), "--vocab-size", "300", "--workers", "0", "--quiet"]
    assert cli.main(arguments) == 0
    return out


def test_a_suite_scores_what_is_there_and_names_what_is_missing_or_damaged(
    folder: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "paper", "--data", str(root), "--out", str(tmp_path), "--bootstrap", "50", "--quiet"]
    assert cli.main(["evaluate", str(folder / "run" / "model"), *arguments]) == 1
    printed = capsys.readouterr()
    suite = json.loads((tmp_path / "suite.json").read_text())
    assert set(suite["results"]) == {"esc50", "gtzan", "ravdess", "clotho"}
    assert set(suite["missing"]) == {"crema_d", "audiocaps"}
    assert "its columns are a, b" in suite["failed"]["urbansound8k"]
    assert [Path(clip["name"]).name for clip in suite["skipped"]] == ["jazz.00054.wav"]
    assert "damaged in the published archive" in printed.err
    # Each file once, although there are two copies, and without the songs.
    assert suite["results"]["ravdess"]["zero_shot"]["clips"] == 4
    assert suite["results"]["ravdess"]["zero_shot"]["prompts"]["templates"] == ["this person is feeling {}"]
    retrieval = suite["results"]["clotho"]["retrieval"]
    assert (retrieval["clips"], retrieval["captions"]) == (3, 15)
    assert suite["results"]["clotho"]["captioning"]["clips"] == 3
    accuracy = 100 * suite["results"]["esc50"]["zero_shot"]["accuracy_at_1"]
    row = next(line.split() for line in printed.out.splitlines() if line.startswith("ESC-50  "))
    assert row[:5] == ["ESC-50", "accuracy", "3", "88.6", f"{accuracy:.1f}"]
    assert f"{accuracy - 88.6:+.1f}" in row
    assert "CREMA-D: not there; get it from github.com/CheyneyComputerScience/CREMA-D" in printed.out
    assert "UrbanSound8K: FAILED:" in printed.out
    assert "| Clotho | text to audio R@1 | 3 | 18.9 |" in (tmp_path / "suite.md").read_text()
    assert (tmp_path / "suite.png").stat().st_size > 10_000


def test_published_files_come_before_a_prepared_copy(root: Path, clotho: Path, tmp_path: Path) -> None:
    shutil.copytree(clotho, tmp_path / "a-prepared")
    found = find_datasets(tmp_path)["clotho"]
    assert found.prepared
    assert found.paths == [tmp_path / "a-prepared"]
    shutil.copytree(root / "clotho", tmp_path / "clotho")
    found = find_datasets(tmp_path)["clotho"]
    assert found.paths == [tmp_path / "clotho" / "clotho_captions_evaluation.csv"]
    assert found.others == [tmp_path / "a-prepared"]


def test_a_suite_without_datasets_is_an_error(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(folder / "run" / "model"), "--suite", "paper", "--data", str(tmp_path)]) == 2
    assert "none of the datasets of the suite is there" in capsys.readouterr().err


def test_the_in_loop_scores_are_those_of_the_command(
    folder: Path, clotho: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relevance = tmp_path / "relevance.csv"
    builders.write_table(
        relevance, ("query", "audio_filenames"), ("a motor", NAMES[:2]), ("water falls", [NAMES[2]]), ("a blade", NAMES)
    )
    tags = builders.fsd50k(tmp_path / "fsd50k")
    builders.write_clip(tags / "FSD50K.dev_audio" / "9.wav")  # not of the split that is scored
    model = str(folder / "run" / "model")
    options = ["--relevance", str(relevance), "--zero-shot", str(tags), "--no-plots", "--quiet", "--out", str(tmp_path)]
    options.append("--captions")
    assert cli.main(["evaluate", model, str(clotho), *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["relevance"]["relevant_pairs"] == 6
    assert set(metrics["zero_shot"]["per_class"]) == {"Bark", "Dog", "Gong", "Rain"}
    assert (metrics["zero_shot"]["clips"], metrics["zero_shot"]["clips_of_other_splits"]) == (2, 1)
    assert metrics["zero_shot"]["classes_without_clips"] == 1

    config = EvaluationConfig(
        dataset=str(clotho), relevance=str(relevance), zero_shot=str(tags), captions=True, metric="map16"
    )
    monkeypatch.setattr(in_loop, "_copy_of_student", lambda engine: SLAP.from_pretrained(model))
    student = SimpleNamespace(tokenizer=SLAP.from_pretrained(model).tokenizer)
    engine = SimpleNamespace(module=SimpleNamespace(student=student))
    ranks: Any = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"), is_first=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        scores = in_loop.InLoopEvaluation(config, tmp_path / "best", ranks).run(engine, 1).scores
    finally:
        dist.destroy_process_group()
    assert scores["score"] == scores["t2a_map16"] == metrics["relevance"]["t2a_map16"]
    assert scores["t2a_map10"] == metrics["retrieval"]["t2a_map10"]
    assert scores["zero_shot_map"] == metrics["zero_shot"]["map"]
    assert scores["cider_d"] == metrics["captioning"]["cider_d"]
