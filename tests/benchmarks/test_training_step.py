"""Training step benchmark: packed and padded models compute the same; workloads and FLOP counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import training_step
from benchmarks.harness.case import Settings, relative_errors
from benchmarks.harness.cli import main
from benchmarks.padded_model import PaddedBatch
from benchmarks.step_flops import step_flops
from benchmarks.training_step import CPU_MODEL, PAPER_MODEL, QUICK_MODEL, Workload, mixed_durations
from slap_fast.training.model import PretrainingModel


@pytest.mark.parametrize("durations", [(0.4, 2.1, 1.3), (0.05, 0.02, 3.0), (1.7,) * 3], ids=["mixed", "tiny", "equal"])
def test_packed_and_padded_agree_in_float64(durations: tuple[float, ...]) -> None:
    workload = Workload(durations, QUICK_MODEL, torch.float64, "cpu")
    padded = training_step._reference(workload)
    packed = training_step.set_up(workload, training_step.PACKED).outputs()
    errors = relative_errors(packed, padded)
    assert max(errors.values()) < 1e-12, errors
    assert all(float(value.abs().max()) > 0 for value in padded.values())


def test_the_padded_batch_has_the_content_of_the_packed_batch() -> None:
    batch = Workload((0.9, 2.3, 0.3), QUICK_MODEL, torch.float32, "cpu").batch()
    padded = PaddedBatch.from_packed(batch, QUICK_MODEL)
    assert torch.equal(padded.input_ids[padded.text_valid], batch.input_ids)
    assert torch.equal(padded.frame_valid.sum(1), batch.frames.cu_seqlens.diff())
    assert torch.equal(padded.token_masked[padded.token_valid].flatten().nonzero().flatten(), batch.masked_tokens)
    assert int((padded.targets != -100).sum()) == batch.text.total - len(batch)


def test_every_peer_is_correct_in_a_quick_run(tmp_path: Path) -> None:
    assert main(["training_step", "--quick", "--no-memory", "--threads", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "training_step-cpu-quick.json").read_text())
    rows = [(case, peer) for case in result["cases"] for peer in case["peers"]]
    assert {peer["name"] for _, peer in rows} == {"padded, SDPA", "packed"}
    assert {peer["status"] for _, peer in rows} == {"ok"}
    assert {case["name"] for case, _ in rows} >= {"mixed durations, fp32", "equal durations, fp32"}


def test_a_step_changes_the_weights_and_a_check_does_not() -> None:
    workload = Workload((0.5, 0.3), QUICK_MODEL, torch.bfloat16, "cpu")
    models: list[PretrainingModel] = []
    run = training_step.set_up(workload, replace(training_step.PACKED, prepare=models.append))
    before = {name: value.clone() for name, value in models[0].state_dict().items()}
    run.outputs()
    assert all(torch.equal(value, before[name]) for name, value in models[0].state_dict().items())
    run.step()
    after = models[0].state_dict()
    for name in ("student.audio_encoder.patch_embedding.weight", "student_head.prototypes"):
        assert not torch.equal(after[name], before[name])


def test_a_large_batch_is_checked_on_few_clips() -> None:
    few = (0.4, 0.9)
    workload = Workload((0.5,) * 6, QUICK_MODEL, torch.float32, "cpu", checked=few)
    outputs = training_step.set_up(workload, training_step.PACKED).outputs()
    errors = relative_errors(outputs, training_step._reference(replace(workload, durations=few, checked=None)))
    assert max(errors.values()) < training_step.TOLERANCES[torch.float32]


@pytest.mark.parametrize("clips", [4, 8, 64])
def test_the_mix_has_durations_from_1_to_30_s_and_about_half_padding(clips: int) -> None:
    durations = mixed_durations(clips)
    assert len(durations) == clips
    assert min(durations) >= 1.0
    assert max(durations) <= 30.0
    assert 0.4 < 1 - sum(durations) / (clips * max(durations)) < 0.6


def test_flops_are_proportional_to_tokens_in_projections() -> None:
    """Expected: 12 layers of 4 w² + 3 w m weights and the patches, seven forward passes, two FLOP per weight."""

    def growth(layers: int) -> float:
        """FLOP of 8 tokens minus those of 4, with `layers` text and caption layers."""
        config = replace(
            PAPER_MODEL,
            text=replace(PAPER_MODEL.text, layers=layers),
            caption=replace(PAPER_MODEL.caption, layers=layers),
        )
        short, long = (step_flops([tokens], [1], config, padded=False) for tokens in (4, 8))
        return long - short

    layers = 12 * (4 * 768**2 + 3 * 768 * 3072) + 256 * 768
    head = 768 * 2048 + 2048**2 + 2048 * 256 + 32_768 * 256
    pairs = 12 * (8**2 - 4**2)
    expected = 7 * 2 * 4 * layers + 8 * 4 * 768 * pairs + 3 * 2 * 2 * 768**2 * 4 + 4 * 2 * head * 2
    assert 2 * growth(1) - growth(2) == pytest.approx(expected)  # extrapolated to 0 layers: the count is linear in them


def test_padding_and_full_windows_cost_flops() -> None:
    lengths, captions = [40, 400], [5, 9]
    packed = step_flops(lengths, captions, CPU_MODEL, padded=False)
    assert step_flops(lengths, captions, CPU_MODEL, padded=True) > 1.5 * packed
    one_layer = replace(CPU_MODEL, audio=replace(CPU_MODEL.audio, global_every=1))
    equal = [step_flops([400, 400], [7, 7], one_layer, padded=padded) for padded in (False, True)]
    assert equal[0] == equal[1]


@pytest.mark.parametrize(("gigabytes", "clips"), [(139, 256), (78, 128)])
def test_a_gpu_runs_the_size_of_the_paper(monkeypatch: pytest.MonkeyPatch, gigabytes: int, clips: int) -> None:
    monkeypatch.setattr(training_step, "available_bytes", lambda device: gigabytes * 2**30)
    product, equal, mixed, compiled, single = training_step.cases(Settings(device="cuda"))
    assert [case.facts["clips"] for case in (equal, mixed, compiled, single)] == [clips, clips // 2, clips, clips // 4]
    assert equal.facts["longest (s)"] == 10.0
    assert mixed.facts["longest (s)"] == max(mixed_durations(clips // 2))
    assert equal.peak == compiled.peak == product.name
    assert not any(case.replayable for case in (equal, mixed, compiled, single))
