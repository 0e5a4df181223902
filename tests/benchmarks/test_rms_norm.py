"""RMSNorm benchmark: all peers compute the same result."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.cli import main


def test_every_peer_is_correct_or_unavailable_with_a_reason(tmp_path: Path) -> None:
    assert main(["rms_norm", "--quick", "--rounds", "1", "--no-memory", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "rms_norm-cpu-quick.json").read_text())["cases"]
    for case in cases:
        statuses = {peer["name"]: peer["status"] for peer in case["peers"]}
        absent = {name for name, status in statuses.items() if status != "ok"}
        assert absent <= {"add, F.rms_norm, torch.compile"}, (case, statuses)
    outputs = {case["name"]: set(case["peers"][0]["errors"]) for case in cases}
    assert outputs["forward, fp32"] == {"normed", "summed"}
    assert outputs["forward and backward, fp32"] == {
        "normed", "summed", "grad of x", "grad of residual", "grad of weight",
    }  # fmt: skip
