"""Benchmark of linear layers: all peers compute the same result."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.cli import main


def test_every_peer_is_correct_or_unavailable_with_a_reason(tmp_path: Path) -> None:
    assert main(["linear", "--quick", "--no-memory", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "linear-cpu-quick.json").read_text())["cases"]
    for case in cases:
        absent = {peer["name"] for peer in case["peers"] if peer["status"] != "ok"}
        assert absent <= ({"MKL, prepacked", "NumPy"} if "bf16" in case["name"] else set()), case
    assert {"PyTorch", "slap-fast", "oneDNN, prepacked", "MKL, prepacked", "NumPy"} <= {
        peer["name"] for case in cases for peer in case["peers"]
    }
