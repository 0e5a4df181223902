from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from slap_fast.evaluation.localization import EventSpan, Localization
from slap_fast.evaluation.plots import plot_localization, plot_losses, plot_similarity, read_log
from slap_fast.ops.log_mel.config import MelConfig


def picture(png: Path) -> np.ndarray:
    return imread(png)


def write_log(path: Path, steps: range) -> None:
    with path.open("a") as file:
        for step in steps:
            losses = {"loss": 3.0 / step, "contrastive": 2.0 / step, "self_distillation": 1.0, "caption": 0.5}
            file.write(json.dumps({"step": step, **losses, "learning_rate": 1e-4, "clips_per_second": 9.0}) + "\n")


def test_the_log_of_a_killed_and_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write_log(log, range(1, 11))
    with log.open("a") as file:
        file.write('{"step": 6, "loss": 42.0}\n{"event": "resumed"}\n{"step": 12, "lo')
    entries = read_log(log)
    assert [entry["step"] for entry in entries] == list(range(1, 11))
    assert entries[5]["loss"] == 42.0


@pytest.mark.parametrize("steps", [1, 60])
def test_losses_of_runs_of_any_length_are_plotted(tmp_path: Path, steps: int) -> None:
    write_log(tmp_path / "log.jsonl", range(1, steps + 1))
    plot_losses(tmp_path / "log.jsonl", tmp_path / "plots" / "losses.png")
    image = picture(tmp_path / "plots" / "losses.png")
    assert image.shape[0] > 600
    assert image.shape[1] > 1200
    assert image.std() > 0.05


def test_values_that_are_not_finite_or_absent_leave_a_gap(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": null}\n'
    )
    plot_losses(tmp_path / "log.jsonl", tmp_path / "losses.png")
    assert picture(tmp_path / "losses.png").std() > 0.01


@pytest.mark.parametrize("content", ["", "no json\n", '{"event": "started"}\n', '{"step": 1, "other": 3}\n'])
def test_a_log_without_losses_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"log\.jsonl"):
        plot_losses(tmp_path / "log.jsonl", tmp_path / "losses.png")


@pytest.mark.parametrize("clips", [1, 60])
def test_similarity_matrices_of_any_size_are_plotted(tmp_path: Path, clips: int) -> None:
    similarity = np.random.default_rng(0).normal(size=(clips, clips)).astype(np.float32)
    plot_similarity(similarity, ["a long caption that is cut " * 5] * clips, tmp_path / "similarity.png")
    assert picture(tmp_path / "similarity.png").std() > 0.05


@pytest.mark.parametrize("shape", [(0, 0), (3, 2), (2, 3), (4, 4)])
def test_a_matrix_of_another_size_than_its_captions_is_an_error(tmp_path: Path, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"\[N, N\]"):
        plot_similarity(np.zeros(shape), ["a"] * (3 if shape[0] else 0), tmp_path / "similarity.png")


def test_curves_and_spectrogram_share_the_time_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slap_fast.evaluation import plots

    figures: list[Figure] = []
    make = plots.new_figure

    def remember(width: float, height: float) -> Figure:
        figures.append(make(width, height))
        return figures[-1]

    monkeypatch.setattr(plots, "new_figure", remember)
    config = MelConfig()
    times = np.arange(0.08, 5, 0.16)
    curves = [
        Localization(query, times, np.sin(times).astype(np.float32)) for query in ("a dog barks", "rain $falls^ for $5")
    ]
    frames = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    events = [EventSpan("dog", 1.0, 2.0), EventSpan("dog", 3.0, 4.0)]
    png = tmp_path / "localization.png"
    plot_localization(frames, curves, png, mel_config=config, title="a dog barks in $the^ rain_$", events=events)
    assert picture(png).std() > 0.1
    spectrogram, below = (axis for axis in figures[0].axes if axis.get_title() or axis.get_xlabel())
    assert spectrogram.get_xlim() == below.get_xlim() == (0.0, 5.0)
    assert spectrogram.get_position().x0 == pytest.approx(below.get_position().x0)
    assert spectrogram.get_position().x1 == pytest.approx(below.get_position().x1)


def test_frames_of_another_filter_bank_are_an_error(tmp_path: Path) -> None:
    curve = Localization("rain", np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match=r"\[F, 64\]"):
        plot_localization(np.zeros((9, 80)), [curve], tmp_path / "x.png", mel_config=MelConfig())
    with pytest.raises(ValueError, match="no curve"):
        plot_localization(np.zeros((9, 64)), [], tmp_path / "x.png", mel_config=MelConfig())
