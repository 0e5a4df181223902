"""The table of preferences is what results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attention_preference
from slap_fast.ops.attention import preference as preference


def _case(name: str, times: dict[str, float], **facts: Any) -> dict[str, Any]:
    peers: list[dict[str, Any]] = [
        {"name": f"slap-fast, {backend}", "status": "ok", "time": {"median": seconds}}
        for backend, seconds in times.items()
    ]
    peers.append({"name": "SDPA, padded", "status": "ok", "time": {"median": 1e-9}})
    peers.append({"name": "slap-fast, broken", "status": "failed check"})
    shape = {"dtype": "float32", "window": "local", "head_dim": 64, "longest": 700, "pass": "forward"}
    return {"name": name, "facts": shape | facts, "peers": peers}


def _result(*cases: dict[str, Any], quick: bool = False, gpu: str | None = None) -> dict[str, Any]:
    return {
        "format": 1,
        "benchmark": "attention",
        "date": "2026-11-25T10:00:00+00:00",
        "settings": {"quick": quick},
        "machine": {"native_isa": "avx2", "gpu": {"capability": gpu} if gpu else None},
        "versions": {"torch": "2.13.0"},
        "cases": [{"name": "matrix product, fp32", "facts": {}, "peers": []}, *cases],
    }


def test_cases_of_one_kind_share_a_row_by_their_geometric_mean() -> None:
    mixed = _case("mixed clips", {"torch": 3.0, "native": 1.0, "sdpa_per_clip": 2.0})
    equal = _case("equal clips", {"torch": 1.0, "native": 1.0, "sdpa_per_clip": 8.0}, longest=250)
    long = _case("one hour", {"torch": 1.0, "native": 2.0}, longest=90_000)
    trained = _case("trained", {"torch": 1.0}, **{"pass": "forward and backward", "window": "global"})
    clips, hour, backward = attention_preference.rows_of(_result(mixed, equal, long, trained))
    assert clips["order"] == ["native", "torch", "sdpa_per_clip"]
    assert clips["times the fastest"] == {"native": 1.0, "torch": 1.73, "sdpa_per_clip": 4.0}
    assert preference.row_key(clips) == ("cpu avx2", "float32", "local", "from 33", "clips", "forward")
    assert preference.row_key(hour) == ("cpu avx2", "float32", "local", "from 33", "long", "forward")
    assert hour["order"] == ["torch", "native"]
    assert preference.row_key(backward)[2:] == ("global", "from 33", "clips", "forward and backward")


def test_the_command_replaces_rows_of_the_measured_device_only(tmp_path: Path) -> None:
    table, result = tmp_path / "table.json", tmp_path / "result.json"

    def run(measured: dict[str, Any]) -> list[dict[str, Any]]:
        result.write_text(json.dumps(measured))
        assert attention_preference.main([str(result), "--table", str(table)]) == 0
        return preference.load(table)["rows"]

    run(_result(_case("a", {"torch": 1.0}), _case("b", {"torch": 1.0}, window="global")))
    rows = run(_result(_case("a", {"triton": 1.0}), gpu="9.0"))
    assert [row["device"] for row in rows] == ["cpu avx2", "cpu avx2", "cuda 9.0"]
    rows = run(_result(_case("a", {"native": 1.0, "torch": 2.0})))
    assert [(row["device"], row["order"]) for row in rows] == [
        ("cpu avx2", ["native", "torch"]),
        ("cuda 9.0", ["triton"]),
    ]


def test_quick_runs_and_other_benchmarks_measure_no_preference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, result = tmp_path / "table.json", tmp_path / "result.json"
    result.write_text(json.dumps(_result(_case("a", {"torch": 1.0}), quick=True)))
    assert attention_preference.main([str(result), "--table", str(table)]) == 2
    assert "only full runs" in capsys.readouterr().err
    assert not table.exists()
    with pytest.raises(ValueError, match="only full runs"):
        attention_preference.rows_of(_result() | {"benchmark": "log_mel"})
