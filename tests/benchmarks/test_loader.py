"""Loader benchmark: all peers load the same clips in the same order."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.cli import main
from benchmarks.loader_peers import reference
from benchmarks.loader_workload import CHECKED_STRIDE, Workload


def test_every_peer_loads_the_same_clips_or_is_unavailable_with_a_reason(tmp_path: Path) -> None:
    assert main(["loader", "--quick", "--rounds", "1", "--no-memory", "--threads", "1", "--out", str(tmp_path)]) == 0
    case, crops = json.loads((tmp_path / "loader-cpu-quick.json").read_text())["cases"]
    for each, certain in ((case, {"slap-fast, soundfile", "soundfile alone"}), (crops, {"slap-fast, soundfile"})):
        status = {peer["name"]: peer["status"] for peer in each["peers"]}
        assert {status[name] for name in {*certain, "DataLoader, soundfile"}} == {"ok"}
        for peer in each["peers"]:
            assert peer["status"] == "ok" or (peer["status"] == "not available" and peer["reason"]), peer
        assert each["work"] == {"clips": 12, "audio seconds": 12.0}


def test_clips_have_the_requested_length_and_the_check_distinguishes_them() -> None:
    workload = Workload(4, 1.5, 2, 2)
    index = workload.open()
    assert [int(record["samples"]) for record in index.records] == [24_000] * 4
    assert sorted(clip for batch in workload.order() for clip in batch) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    samples = reference(workload)["samples"]
    assert samples.shape == (4, -(-24_000 // CHECKED_STRIDE))
    assert len({tuple(row) for row in samples.tolist()}) == 4
