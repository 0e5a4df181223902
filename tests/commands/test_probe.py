"""`slap-fast probe` from audio files to scores, with a small random model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from slap_fast import cli
from slap_fast.commands import probe
from slap_fast.data.labeled import open_labeled
from slap_fast.evaluation.probe import classifiers
from slap_fast.evaluation.probe.embeddings import LabeledEmbeddings, labeled_embeddings
from slap_fast.models.slap import SLAP
from tests.models.builders import TINY

CLASSES = ("dog", "sea_waves", "clock_tick")


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    """ESC-50's layout: tones of a pitch for each class, in noise."""
    folder, rng = tmp_path / "ESC-50-master", np.random.default_rng(0)
    for name in ("audio", "meta"):
        (folder / name).mkdir(parents=True)
    rows = []
    for at in range(27):
        label, fold = at % 3, at // 9 + 1
        name = f"{fold}-{1000 + at // 3}-A-{label}.wav"
        pitch = 200 + 400 * label
        sound = 0.3 * np.sin(2 * np.pi * pitch * np.arange(4800) / 16_000) + 0.1 * rng.standard_normal(4800)
        soundfile.write(folder / "audio" / name, sound, 16_000)
        rows.append([name, fold, label, CLASSES[label], "False", 1000 + at // 3, "A"])
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "fold", "target", "category", "esc10", "src_file", "take"], *rows])
    return folder


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SLAP:
    torch.manual_seed(0)
    model = SLAP(TINY).eval()
    monkeypatch.setattr(probe, "load_model", lambda folder, device, precision: model)
    monkeypatch.setattr(probe, "check_model", lambda folder, device: None)
    monkeypatch.setattr(classifiers, "STRENGTHS", (1e-2, 1.0))  # fewer fits
    return model


def test_a_second_probe_takes_the_embeddings_of_the_first_until_a_file_or_the_model_changes(
    model: SLAP, esc50: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed() -> LabeledEmbeddings:
        return labeled_embeddings(model, open_labeled(esc50), esc50, tmp_path / "cache")

    first, second = embed(), embed()
    assert (first.cached, second.cached, first.features.shape) == (False, True, (27, TINY.audio.width))
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(second.clips, np.arange(27))

    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-100])
    assert not embed().cached  # damaged

    (esc50 / "audio" / "1-1000-A-0.wav").write_bytes(b"RIFF and then nothing")
    third, fourth = embed(), embed()
    assert (third.cached, fourth.cached, len(fourth.features)) == (False, True, 26)
    assert [clip.name for clip in fourth.skipped] == [str(esc50 / "audio" / "1-1000-A-0.wav")]

    with torch.no_grad():
        model.audio_encoder.mask_token.add_(1.0)
    assert not embed().cached


def test_published_folds_are_scored_written_and_plotted(
    model: SLAP, esc50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "model", str(esc50), "--out", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == report
    (data,) = report["data"]
    assert (data["split_kind"], list(data["knn"]["per_split"])) == ("3 published folds", ["fold 1", "fold 2", "fold 3"])
    assert data["linear"]["interval"][0] <= data["linear"]["mean"] <= data["linear"]["interval"][1]
    assert data["linear"]["mean"] > 0.8
    assert (tmp_path / "out" / "esc50.png").read_bytes().startswith(b"\x89PNG")


def test_scores_warnings_and_skipped_clips_are_printed(
    model: SLAP, esc50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path / "folders"
    for path in (esc50 / "audio").iterdir():
        (folders / CLASSES[int(path.stem[-1])]).mkdir(parents=True, exist_ok=True)
        path.rename(folders / CLASSES[int(path.stem[-1])] / path.name)
    (folders / "dog" / "broken.wav").write_bytes(b"RIFF and then nothing")
    assert cli.main(["probe", "model", str(folders), "--out", str(tmp_path / "out"), "--quiet", "--no-plots"]) == 1
    printed = capsys.readouterr()
    assert "folders (5 random folds)  linear" in printed.out
    assert "folders: the data has no folds: these are random" in printed.err
    assert f"skipped {folders / 'dog' / 'broken.wav'}: unreadable" in printed.err
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["embeddings", "probe.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give DATA to probe, or --frames with --train and --test"),
        (["--frames", "--train", "a"], "--frames needs --train DATASET and --test DATASET"),
        (["data", "--frames", "--train", "a", "--test", "b"], "takes --train and --test, and no DATA; leave data out"),
        (["data", "--train", "a"], "--train and --test are for --frames"),
        (["none"], "none: no such folder"),
        (["sounds.csv"], "sounds.csv: none of its splits is a test split (a, b); give --test-split"),
        (["data", "--threshold", "2"], "--threshold is 2; it must be between 0 and 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    model: SLAP,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sounds.csv").write_text("file,label,split\n1.wav,dog,a\n2.wav,rain,b\n")
    assert cli.main(["probe", "model", *arguments]) == 2
    assert message in capsys.readouterr().err
