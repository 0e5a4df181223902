"""Benchmark of `encode_audio`: all ways give the same embeddings."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.cli import main


def test_every_way_gives_the_same_embeddings(tmp_path: Path) -> None:
    assert main(["encode_audio", "--quick", "--no-memory", "--out", str(tmp_path), "--cases", "1 s"]) == 0
    case, int8 = json.loads((tmp_path / "encode_audio-cpu-quick.json").read_text())["cases"]
    assert [peer["status"] for peer in case["peers"]] == ["ok"] * 3
    assert {peer["status"] for peer in int8["peers"]} == {"ok"}
    assert max(peer["errors"]["embeddings"] for peer in case["peers"]) < 1e-5
