"""SwiGLU benchmark: all peers compute the same result."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.cli import main


def test_every_peer_is_correct_or_unavailable_with_a_reason(tmp_path: Path) -> None:
    assert main(["swiglu", "--quick", "--rounds", "1", "--no-memory", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "swiglu-cpu-quick.json").read_text())["cases"]
    for case in cases:
        absent = {peer["name"] for peer in case["peers"] if peer["status"] != "ok"}
        assert absent <= {"torch.compile"}, case
        outputs = {"values"} if "copy" in case["name"] else {"hidden", *["gradient"] * ("backward" in case["name"])}
        assert set(case["peers"][0]["errors"]) == outputs
