"""The plan's figures at one million clips: what is bounded a clip must be bounded here too."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.report import render
from benchmarks.harness.results import load_result
from benchmarks.plan import BOUNDS, CLIPS, main

_CLIPS = 1_000_000


def test_memory_time_and_balance_are_bounded(tmp_path: Path) -> None:
    main(["--clips", str(_CLIPS), "--steps", "60", "--folder", str(tmp_path), "--out", str(tmp_path)])
    path = tmp_path / "plan-cpu-quick.json"
    result = load_result(path)
    figures = {figure["name"]: figure["value"] for figure in result["figures"]}
    for name in BOUNDS.keys() & figures.keys():
        assert name in render(result)
    assert figures["clips an epoch"] > 0.9 * _CLIPS
    # The median: a machine that is busy with other things may stop any single step.
    assert figures["median plan (ms)"] < 50
    assert figures["worst token imbalance (%)"] < 2
    # The index alone is 42 MB, which a scan or a plan that kept what it has read would show.
    before = figures["resident before (MB)"]
    assert figures["first opening, peak resident (MB)"] - before < 45
    assert figures["resident (MB)"] - before < 60
    # 200 MB for all clips of the full size is 1.8 bytes a clip, beside what does not grow with them.
    assert figures["resident at the end (MB)"] - before < 20 + 200 * _CLIPS / CLIPS
    assert list(tmp_path.iterdir()) == [path], "the dataset is gone"
