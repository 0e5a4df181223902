"""Captioning benchmark: all peers generate the same captions."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.cli import main


def test_every_peer_generates_the_captions_of_decoding_without_a_cache(tmp_path: Path) -> None:
    assert main(["captioning", "--quick", "--rounds", "1", "--no-memory", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "captioning-cpu-quick.json").read_text())["cases"]
    assert {case["name"] for case in cases} == {"quickstart, features to text", "quickstart, audio to text"}
    for case in cases:
        assert [peer["status"] for peer in case["peers"]] == ["ok"] * 3, case
        assert all(peer["errors"] == {"tokens": 0.0} for peer in case["peers"]), case
