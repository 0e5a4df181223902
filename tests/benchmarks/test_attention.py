"""Attention benchmark: all peers compute the same result."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import attention, attention_peers
from benchmarks.attention_workload import Workload
from benchmarks.harness.case import Settings, relative_errors
from benchmarks.harness.cli import main
from benchmarks.harness.report import render
from slap_fast.ops.attention import BACKENDS

SMALL = Workload((3, 1, 40), (5, 2), torch.float32, backward=True, device="cpu", heads=2, head_dim=16)
PEERS = [
    attention_peers.sdpa_by_clip,
    attention_peers.sdpa_by_tile,
    attention_peers.products_by_clip,
    attention_peers.sdpa_padded,
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    assert main(["attention", "--quick", "--no-memory", "--threads", "1", "--out", str(folder)]) == 0
    return json.loads((folder / "attention-cpu-quick.json").read_text())


def test_every_peer_is_correct_or_unavailable_with_a_reason(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        for peer in case["peers"]:
            assert peer["status"] == "ok" or (peer["status"] == "not available" and peer["reason"]), (case, peer)
        status = {peer["name"]: peer["status"] for peer in case["peers"]}
        assert status[case["baseline"]] == "ok"
        assert case["name"].startswith("matrix product") or status["slap-fast, torch"] == "ok"


def test_gradients_are_checked_if_they_are_timed(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        outputs = {name for peer in case["peers"] for name in peer.get("errors", ())}
        if case["name"].startswith("matrix product"):
            assert outputs == {"product"}
        else:
            assert outputs == {"out", *(("dq", "dk", "dv") if case["name"].endswith("backward") else ())}


def test_the_peak_rate_is_that_of_the_matrix_product_of_the_same_dtype(result: dict[str, Any]) -> None:
    names = {case["name"] for case in result["cases"]}
    for case in result["cases"]:
        assert case["peak"] in names
        assert case["peak"].split(", ")[1] in case["name"]


def test_the_table_has_a_column_with_shares_of_the_peak_rate(result: dict[str, Any]) -> None:
    header, _, *rows = [line.split("|")[1:-1] for line in render(result).splitlines() if line.startswith("|")]
    share = [cell.strip() for cell in header].index("share of measured peak")
    assert {len(row) for row in rows} == {len(header)}
    cells = {(row[0].strip(), row[1].strip()): row[share].strip() for row in rows}
    assert cells["matrix product, fp32", "torch.matmul"] == "100%"
    product, case = (
        next(case for case in result["cases"] if case["name"] == name)
        for name in ("matrix product, fp32", "mixed clips, local, fp32, forward")
    )
    peer = case["peers"][0]
    rate = peer["rate"][attention.USEFUL] / product["peers"][0]["rate"][attention.USEFUL]
    assert cells[case["name"], peer["name"]] == f"{rate:.0%}"
    assert cells[case["name"], "flex_attention"] == ""


@pytest.mark.parametrize("window", [(-1, -1), (5, 2), (0, 0)])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_apply_the_window(peer: Any, window: tuple[int, int]) -> None:
    workload = replace(SMALL, window=window)
    errors = relative_errors(peer(workload).outputs(), workload.reference())
    assert max(errors[name] for name in ("out", "dv")) < 1e-6
    if window != (0, 0):  # where dq and dk are zero, so a relative error is undefined
        assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("window", [(1, 0), (0, 1), (47, 48), (48, 48), (-1, 0), (0, -1), (3, -1)])
def test_attention_by_tile_is_correct_where_tiles_share_keys(window: tuple[int, int]) -> None:
    # One token, and lengths close to the tile size of 128 rows and to the window of 97 tokens.
    workload = replace(SMALL, lengths=(1, 5, 96, 97, 98, 127, 128, 129, 260), window=window)
    errors = relative_errors(attention_peers.sdpa_by_tile(workload).outputs(), workload.reference())
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("tokens", [64, 65, 500])
def test_attention_in_blocks_equals_attention_over_the_whole_clip(tokens: int) -> None:
    workload = replace(SMALL, lengths=(tokens,), window=(48, 20))
    errors = relative_errors(attention_peers.sdpa_in_blocks(workload).outputs(), workload.reference())
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("window", [(-1, -1), (48, 48), (200, 3)])
def test_the_flex_attention_mask_has_exactly_the_visible_pairs(window: tuple[int, int]) -> None:
    from torch.nn.attention.flex_attention import create_mask

    workload = replace(SMALL, lengths=(3, 0, 129, 1, 300), window=window)
    mask = attention_peers._flex_mask(workload)
    visible = create_mask(mask.mask_mod, None, None, workload.tokens, workload.tokens, device="cpu")[0, 0]
    assert int(visible.sum()) == workload.pairs
    # The mask has exactly the blocks with a visible pair.
    blocks = -(-workload.tokens // attention_peers.FLEX_BLOCK)
    padded = torch.zeros(2 * [blocks * attention_peers.FLEX_BLOCK], dtype=torch.bool)
    padded[: workload.tokens, : workload.tokens] = visible
    expected = padded.unflatten(0, (blocks, -1)).unflatten(2, (blocks, -1)).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), expected)


def test_a_peer_that_ignores_the_window_fails_its_check() -> None:
    outputs = attention_peers.sdpa_by_clip(replace(SMALL, window=(-1, -1))).outputs()
    assert relative_errors(outputs, SMALL.reference())["out"] > 10 * attention.TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("window", [(-1, -1), (0, 0), (3, 1), (50, 0), (-1, 0)])
def test_pairs_and_flop_equal_a_brute_force_count(window: tuple[int, int]) -> None:
    expected = 0
    for length in (0, 1, 7, 60):
        for query in range(length):
            first = 0 if window[0] < 0 else max(0, query - window[0])
            last = length - 1 if window[1] < 0 else min(length - 1, query + window[1])
            expected += last - first + 1
    workload = replace(SMALL, lengths=(0, 1, 7, 60), window=window)
    assert workload.pairs == expected
    assert workload.flop == 14 * 16 * 2 * expected
    assert replace(workload, backward=False).flop == 4 * 16 * 2 * expected


def test_sizes_match_the_docstring() -> None:
    sizes = attention.workloads(Settings())
    assert [(len(lengths), sum(lengths)) for lengths in sizes.values()] == [(16, 3032), (16, 4000), (1, 90_000)]
    flop = {
        (name, kind): Workload(lengths, window, torch.float32, False, "cpu", 12, 64).flop / 1e9
        for name, lengths in sizes.items()
        for kind, window in attention.WINDOWS.items()
    }
    assert flop["mixed clips", "local"] == pytest.approx(0.79, abs=0.005)
    assert flop["mixed clips", "global"] == pytest.approx(3.23, abs=0.005)
    assert flop["equal clips", "local"] == pytest.approx(1.08, abs=0.005)
    assert flop["equal clips", "global"] == pytest.approx(3.07, abs=0.005)
    assert flop[attention.HOUR, "local"] == pytest.approx(26.8, abs=0.05)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_device_is_measured_with_its_own_backends(device: str) -> None:
    cases = attention.cases(Settings(device=device))
    names = {peer.name for case in cases for peer in case.peers}
    gpu_backends = {"flash_attn_2", "flash_attn_3", "flash_attn_4", "torch_varlen", "torch_efficient", "triton"}
    cpu_backends = {"native", "torch"}
    elsewhere = gpu_backends if device == "cpu" else cpu_backends
    assert {f"slap-fast, {name}" for name in BACKENDS if name not in elsewhere} <= names
    assert not {f"slap-fast, {name}" for name in elsewhere} & names
    assert ("xformers" in names) == (device == "cuda")
    hour = next(case for case in cases if case.name.startswith(attention.HOUR))
    reasons = {peer.name: peer.unavailable for peer in hour.peers}
    assert reasons["slap-fast, torch_padded"] == reasons["SDPA, padded"] == attention.TOO_LARGE
