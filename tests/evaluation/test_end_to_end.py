from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from slap_fast import cli
from slap_fast.data.format.index import ClipIndex
from slap_fast.evaluation.localization import events_of
from tests.commands.stored_embeddings import read_embeddings
from tests.data.labeled import builders


def test_synthetic_clips_have_events(folder: Path) -> None:
    index = ClipIndex.open(folder / "data" / "validation")
    for clip in range(len(index)):
        events = events_of(index.read_metadata(clip))
        assert events
        assert all(0 <= event.start < event.end <= index.durations[clip] + 0.01 for event in events)
        assert all("_" not in event.text for event in events)


def test_a_model_serves_every_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, validation = str(folder / "run" / "model"), str(folder / "data" / "validation")

    assert cli.main(["evaluate", model, validation, "--localize", "1", "--quiet"]) == 0
    assert "text to audio" in capsys.readouterr().out
    metrics = json.loads((folder / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["retrieval"]["clips"] == 4
    assert 0 <= metrics["retrieval"]["t2a_r1"] <= 1
    assert (folder / "run" / "evaluation" / "localization.png").stat().st_size > 10_000

    stored = folder / "validation.npz"
    assert cli.main(["embed", model, validation, "--out", str(stored), "--quiet"]) == 0
    names, embeddings = read_embeddings(stored)
    assert len(names) == 4
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)

    capsys.readouterr()
    assert cli.main(["caption", model, validation, "--json", "--quiet"]) == 0
    captions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["name"] for entry in captions] == names
    assert all(isinstance(entry["caption"], str) and len(entry["references"]) >= 3 for entry in captions)


def test_the_python_example_of_the_docs_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    builders.esc50(tmp_path / "data" / "esc50")
    (tmp_path / "demo").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert "{'clips': 2, 'accuracy': " in capsys.readouterr().out
