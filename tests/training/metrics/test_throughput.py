"""Throughput, peak FLOP/s, step counts, and the suspect clips of a non-finite loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from slap_fast.training.metrics import throughput
from slap_fast.training.metrics.nonfinite import suspect_clips
from slap_fast.training.metrics.peak_flops import gpu_peak_flops, measure_peak_flops
from slap_fast.training.metrics.step_counts import StepCounts, batch_metrics, memory_in_use
from slap_fast.training.metrics.throughput import ThroughputMeter
from tests.training import tiny


def test_only_clips_with_non_finite_samples_are_suspect() -> None:
    batch = tiny.batch(tiny.run_config(), step=3)
    assert suspect_clips(batch) == batch.clip_ids.tolist()
    assert suspect_clips(tiny.poisoned(batch)) == [int(batch.clip_ids[0])]


def test_paused_time_is_excluded_from_the_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 107.0, 110.0, 110.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(now))
    meter = ThroughputMeter(peak_flops=8e12)
    meter.add(20, 60.0, 8e12)
    with meter.paused():
        pass
    assert meter.read() == {
        "clips_per_second": 5.0,
        "audio_seconds_per_second": 15.0,
        "teraflops_per_second": 2.0,
        "mfu": 0.25,
    }


def test_mfu_of_an_unknown_device_is_null() -> None:
    meter = ThroughputMeter()
    meter.add(20, 60.0, 8e12)
    assert meter.read()["mfu"] is None


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A4000", None),
        ("Radeon", None),
    ],
)
def test_the_peak_of_a_gpu_is_from_its_data_sheet(name: str, teraflops: float | None) -> None:
    assert gpu_peak_flops(name, "bf16") == (None if teraflops is None else teraflops * 1e12)


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < measure_peak_flops("fp32") < 1e14


def test_padding_waste_is_counted_from_the_buffers() -> None:
    config = tiny.run_config()
    counts = StepCounts(config.recipe.model, config.recipe.objectives)
    packed = tiny.batch(config, step=3)
    maxima = {"memory": memory_in_use(torch.device("cpu"))}
    found = batch_metrics(counts.count(packed, detailed=True) | {"dropped_clips": 2.0}, maxima)
    assert found["padding_waste"] == 0.0
    assert found["dropped_clips"] == 2.0
    assert 0.05 < found["memory_gib"] < 64.0
    # Each caption padded to the longest.
    padded = len(packed) * packed.text.max_seqlen
    padding = dataclasses.replace(packed, input_ids=packed.input_ids.new_zeros(padded))
    found = batch_metrics(counts.count(padding, detailed=True) | {"dropped_clips": 0.0}, maxima)
    tokens = packed.tokens.total + packed.text.total
    assert found["padding_waste"] == pytest.approx(1 - tokens / (packed.tokens.total + padded))
    assert found["padding_waste"] > 0.0
