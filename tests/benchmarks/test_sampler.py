"""The sampler benchmark at one million clips: memory per clip, time and balance are within their bounds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.report import render
from benchmarks.harness.results import load_result
from benchmarks.sampler import BOUNDS, CLIPS, main

_CLIPS = 1_000_000


def test_memory_time_and_balance_are_bounded(tmp_path: Path) -> None:
    main(["--clips", str(_CLIPS), "--steps", "60", "--folder", str(tmp_path), "--out", str(tmp_path)])
    path = tmp_path / "sampler-cpu-quick.json"
    result = load_result(path)
    figures = {figure["name"]: figure["value"] for figure in result["figures"]}
    for name in BOUNDS.keys() & figures.keys():
        assert name in render(result)
    assert figures["clips per epoch"] > 0.9 * _CLIPS
    # The median, because a busy machine may interrupt any single step.
    assert figures["median batch (ms)"] < 50
    assert figures["worst token imbalance (%)"] < 2
    # The index alone is 42 MB: a scan or a sampler that kept it in memory would exceed this.
    before = figures["resident before (MB)"]
    assert figures["first opening, peak resident (MB)"] - before < 45
    assert figures["resident (MB)"] - before < 60
    # 200 MB at full scale is 1.8 bytes per clip, plus 20 MB that does not depend on the clips.
    assert figures["resident at the end (MB)"] - before < 20 + 200 * _CLIPS / CLIPS
    assert list(tmp_path.iterdir()) == [path], "the dataset is gone"
