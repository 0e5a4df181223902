"""The examples of docs/library.md run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def test_the_examples_run_in_order(
    tmp_path: Path, empty_library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(empty_library, "sounds")
    shutil.copytree(empty_library.parent / "model", "demo/run/model")
    (tmp_path / "recordings").mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    soundfile.write("recordings/noise.wav", noise, 16_000)
    soundfile.write("recordings/tone.flac", 0.3 * np.sin(np.arange(24_000) * 0.2), 16_000)
    (tmp_path / "recordings" / "copy.wav").write_bytes((tmp_path / "recordings" / "noise.wav").read_bytes())
    printed = []
    for example in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M):
        exec(example, {})
        printed.append(capsys.readouterr().out)
    search, duplicates, clusters, shared = printed
    assert len(search.splitlines()) == 3
    assert "noise.wav" in duplicates
    assert "copy.wav" in duplicates
    assert clusters == ""  # too few recordings
    assert shared.startswith("Exported(added=3, updated=0, removed=0, kept=0)\n")
    assert len(shared.splitlines()) == 4
