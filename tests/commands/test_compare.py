"""`slap-fast compare` on runs that differ in length, losses, evaluations and settings."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from slap_fast import cli
from slap_fast.config.loading import load_run_config, to_yaml


def write_run(folder: Path, losses: dict[str, Sequence[float]], *arguments: str, more: Sequence[object] = ()) -> Path:
    """A run that logged these values at steps 1, 2, ..., and `more` records, or lines."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_run_config("quickstart", arguments)))
    steps = zip(*losses.values(), strict=True)
    records = [
        {"step": at, **dict(zip(losses, values, strict=True)), "mfu": None} for at, values in enumerate(steps, 1)
    ]
    lines = [one if isinstance(one, str) else json.dumps(one) for one in [*records, *more]]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    scores = [
        {"step": at, "evaluation/score": score, "evaluation/a2t_median_rank": 10 - score}
        for at, score in ((4, 0.5), (8, 0.75), (12, 0.625))
    ]
    nonfinite = {"step": 5, "skipped": True, "nonfinite": ["caption"], "clips": ["a"]}
    repeated = {"step": 20, "loss": 1.5, "contrastive": 0.5}  # a resumed run: the later record counts
    full = write_run(
        tmp_path / "all" / "run",
        {"loss": range(30, 10, -1), "contrastive": range(20), "clips_per_second": [50] * 19 + [1000]},
        more=[*scores, nonfinite, '{"step": 21, "lo', "[1]", repeated],
    )
    plain = write_run(
        tmp_path / "plain" / "run",
        {"loss": [3.0, 2.0], "memory_gib": [1.0, 4.0]},
        "objectives.caption_weight=0",
        "training.output=x",
    )
    (full / "evaluation").mkdir()
    (full / "evaluation" / "metrics.json").write_text(
        json.dumps(
            {
                "dataset": "data/clotho",
                "retrieval": {"t2a_r1": 0.25, "clips": 9.0},
                "relevance": {"t2a_map16": 0.375, "queries": 5.0},
                "zero_shot": {"source": "esc", "accuracy_at_1": 0.5},
            }
        )
    )
    suite = {"results": {"gtzan": {"zero_shot": {"accuracy_at_1": 0.125}}}, "missing": {"clotho": "zenodo"}}
    (full / "evaluation" / "suite.json").write_text(json.dumps(suite))
    (full / "probe").mkdir()
    (full / "probe" / "probe.json").write_text(
        json.dumps({"data": [{"name": "esc50", "metric": "accuracy", "linear": {"mean": 0.9}, "knn": {"mean": 0.8}}]})
    )
    (plain / "probe").mkdir()
    (plain / "probe" / "probe.json").write_text("{")
    return [full, plain]


def test_runs_are_compared_by_losses_scores_speed_and_differing_settings(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["compare", *map(str, runs), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report == json.loads((out / "compare.json").read_text())
    assert report["values"] == {
        "last step": {"all/run": 20, "plain/run": 2},
        "steps of the schedule": {"all/run": 160, "plain/run": 160},
        "loss, final": {"all/run": (12 + 1.5) / 2, "plain/run": 2.0},  # the last tenth
        "contrastive, final": {"all/run": (18 + 0.5) / 2, "plain/run": None},
        "score, last": {"all/run": 0.625, "plain/run": None},
        "score, best": {"all/run": 0.75, "plain/run": None},
        "step of the best score": {"all/run": 8, "plain/run": None},
        "a2t_median_rank at the best score": {"all/run": 9.25, "plain/run": None},
        "clotho retrieval t2a_r1": {"all/run": 0.25, "plain/run": None},
        "clotho relevance t2a_map16": {"all/run": 0.375, "plain/run": None},
        "esc zero-shot accuracy_at_1": {"all/run": 0.5, "plain/run": None},
        "gtzan zero-shot accuracy_at_1": {"all/run": 0.125, "plain/run": None},
        "esc50 probe linear accuracy": {"all/run": 0.9, "plain/run": None},
        "esc50 probe knn accuracy": {"all/run": 0.8, "plain/run": None},
        "clips/s, median": {"all/run": 50.0, "plain/run": None},
        "memory, GiB, most": {"all/run": None, "plain/run": 4.0},
        "skipped steps": {"all/run": 1, "plain/run": 0},
    }
    assert report["settings"] == {"objectives.caption_weight": {"all/run": "0.5", "plain/run": "0.0"}}
    assert f"{runs[0]}/log.jsonl: damaged lines left out: 2 (line 25, 26)" in printed.err
    assert f"{runs[1]}/probe/probe.json: cannot be read" in printed.err
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "all/run", "plain/run"]
    assert ["score, best", "0.75", ""] in rows
    assert "| loss, final | 6.75 | 2 |" in (out / "compare.md").read_text()
    for name in ("losses.png", "scores.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_one_run_or_many_print_a_table(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(runs[1])]) == 0
    assert "last step              2" in capsys.readouterr().out
    (runs[0] / "config.yaml").unlink()
    assert cli.main(["compare", *map(str, runs)]) == 0
    printed = capsys.readouterr()
    assert "settings that differ" not in printed.out
    assert f"{runs[0]}/config.yaml: not there; the settings of this run are not compared" in printed.err


def test_folders_that_are_no_run_are_errors(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text("{\n")
    (runs[0] / "model").mkdir()
    for folders, message in (
        ([tmp_path / "none"], "none: no log.jsonl; give the output folder of a training run"),
        ([runs[0] / "model"], f"did you mean {runs[0]}?"),
        ([tmp_path / "empty"], "log.jsonl: no logged step"),
        ([runs[0], runs[0]], "given twice"),
    ):
        assert cli.main(["compare", *map(str, folders)]) == 2
        assert message in capsys.readouterr().err
