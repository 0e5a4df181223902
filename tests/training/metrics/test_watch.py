"""Which clips are blamed for a loss that is not finite, and how speed is counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from slap_fast.training.metrics import watch
from slap_fast.training.metrics.device_peak import gpu_peak, measured_peak
from slap_fast.training.metrics.step_counts import StepCounts, batch_metrics, memory_in_use
from slap_fast.training.metrics.watch import Speed, suspects
from tests.training import tiny


def test_clips_with_samples_that_are_not_finite_are_blamed_alone() -> None:
    batch = tiny.batch(tiny.run_config(), step=3)
    assert suspects(batch) == batch.clip_ids.tolist()
    assert suspects(tiny.poisoned(batch)) == [int(batch.clip_ids[0])]


def test_speed_leaves_out_what_pauses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 107.0, 110.0, 110.0])
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(now))
    speed = Speed(peak_flops=8e12)
    speed.add(20, 60.0, 8e12)
    with speed.paused():
        pass
    assert speed.read() == {
        "clips_per_second": 5.0,
        "audio_seconds_per_second": 15.0,
        "teraflops_per_second": 2.0,
        "mfu": 0.25,
    }


def test_utilization_of_a_device_that_is_not_known_is_null() -> None:
    speed = Speed()
    speed.add(20, 60.0, 8e12)
    assert speed.read()["mfu"] is None


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
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(name: str, teraflops: float | None) -> None:
    assert gpu_peak(name, "bf16") == (None if teraflops is None else teraflops * 1e12)


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < measured_peak("fp32") < 1e14


def test_padding_waste_is_counted_from_the_buffers() -> None:
    config = tiny.run_config()
    counts = StepCounts(config.recipe.model, shared_pass=False)
    packed = tiny.batch(config, step=3)
    levels = {"memory": memory_in_use(torch.device("cpu"))}
    found = batch_metrics(counts.of(packed, detailed=True) | {"dropped_clips": 2.0}, levels)
    assert found["padding_waste"] == 0.0
    assert found["dropped_clips"] == 2.0
    assert 0.05 < found["memory_gib"] < 64.0
    # Each caption filled up to the longest.
    padded = len(packed) * packed.text.max_seqlen
    padding = dataclasses.replace(packed, input_ids=packed.input_ids.new_zeros(padded))
    found = batch_metrics(counts.of(padding, detailed=True) | {"dropped_clips": 0.0}, levels)
    tokens = packed.tokens.total + packed.text.total
    assert found["padding_waste"] == pytest.approx(1 - tokens / (packed.tokens.total + padded))
    assert found["padding_waste"] > 0.0
