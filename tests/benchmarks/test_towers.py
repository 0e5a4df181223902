"""Benchmark of audio towers: peers agree with themselves, operation counts, batches by length, work of a peer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import towers_peers, towers_steps
from benchmarks.harness.cli import main
from benchmarks.harness.report import render
from benchmarks.towers_workload import Workload, batches_by_length, packed_flops, padded_flops
from benchmarks.training_step import QUICK_MODEL
from slap_fast.models.flops import forward_flops
from slap_fast.ops import dispatch

WORKLOAD = Workload((4.0, 1.0, 12.0), QUICK_MODEL, torch.float32, "cpu", bucket_tokens=250)


def test_every_peer_agrees_with_itself_or_is_unavailable_with_a_reason(tmp_path: Path) -> None:
    arguments = ["towers", "--quick", "--no-memory", "--threads", "1", "--out", str(tmp_path), "--cases", "contrastive"]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "towers-cpu-quick.json").read_text())
    case, _ = result["cases"]
    rows = {peer["name"]: peer for peer in case["peers"]}
    assert len(rows) == 9
    for name, row in rows.items():
        if row["status"] == "not available":
            assert name.startswith("NaFlexCLAP")
            assert "timm cannot be imported" in row["reason"]
        else:
            assert row["status"] == "ok", row
            assert set(row["errors"]) == {"embeddings", "gradients"}
    padded, bucketed, single = (
        rows[f"SigLIP 2, {way}"]["work"]["GFLOP"] for way in ("padded", "length buckets", "one clip at a time")
    )
    assert padded > bucketed > single
    assert "| GFLOP per step |" in render(result)


@pytest.mark.parametrize("trains", [False, True])
def test_a_tower_that_computes_something_else_for_a_padded_clip_is_off(trains: bool) -> None:
    def careless(workload: Workload) -> towers_steps.Tower:
        tower = towers_peers.siglip(workload)

        def prepare(clips):  # without the mask of padding
            inputs = tower.prepare(clips)
            return inputs | {"pixel_attention_mask": torch.ones_like(inputs["pixel_attention_mask"])}

        return towers_steps.Tower(tower.module, tower.width, prepare, tower.embed, tower.flops, tower.contrast)

    def errors(build: towers_steps.Build) -> list[float]:
        if trains:
            run = towers_steps.train(WORKLOAD, build, towers_steps.together, contrastive=False)
        else:
            run = towers_steps.encode(WORKLOAD, build, towers_steps.together)
        outputs = run.outputs()
        assert set(outputs) == set(towers_steps.reference(trains=trains))
        return [float(value) - 1 for value in outputs.values()]

    assert max(errors(towers_peers.siglip)) < 1e-5
    assert min(errors(careless)) > 1e-3


def test_operation_counts_are_those_of_the_towers() -> None:
    def counted(tower: towers_steps.Tower) -> float:
        inputs = tower.prepare([0, 1, 2])
        with (
            dispatch.preferring(**towers_steps.plain_backends()),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            tower.embed(inputs)
        return counter.get_total_flops()

    # The formulas leave out the query of the pooling, one row for each clip.
    assert counted(towers_peers.siglip(WORKLOAD)) == pytest.approx(padded_flops(WORKLOAD, [[0, 1, 2]]), rel=0.02)
    # PyTorch's attention computes the pairs outside of the window, too: without attention the counts are comparable.
    tokens = WORKLOAD.tokens
    attention = forward_flops(QUICK_MODEL, tokens, [1] * len(tokens), masked=0)["audio_encoder"].attention
    projections = packed_flops(WORKLOAD) - attention
    assert projections == pytest.approx(counted_projections(towers_peers.slap_fast(WORKLOAD)), rel=0.02)


def counted_projections(tower: towers_steps.Tower) -> float:
    """FLOPs of the linear layers, from the shapes of what they take and give."""
    total = 0.0

    def count(layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += 2.0 * inputs[0].numel() * layer.out_features

    hooks = [m.register_forward_hook(count) for m in tower.module.modules() if isinstance(m, torch.nn.Linear)]
    tower.embed(tower.prepare([0, 1, 2]))
    for hook in hooks:
        hook.remove()
    return total


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_batches_hold_every_clip_once_in_the_order_of_length(lengths: list[int], most: int) -> None:
    batches = batches_by_length(lengths, most)
    order = [lengths[position] for batch in batches for position in batch]
    assert order == sorted(lengths)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= most
    for batch, following in pairwise(batches):  # no batch could have taken the next clip
        assert (len(batch) + 1) * lengths[following[0]] > most
