"""Loss benchmarks: all peers compute the same result, and the references for large batches are correct."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import losses, losses_at_scale, losses_peers
from benchmarks.harness.case import Settings, benchmark_names, default_names, not_installed, relative_errors
from benchmarks.harness.cli import main
from benchmarks.losses_workload import Captions, Contrastive, Prototypes
from benchmarks.our_peers import PREFIX
from slap_fast.ops import dispatch
from tests.oracles.contrastive_loss import contrastive_loss
from tests.oracles.linear_cross_entropy import linear_cross_entropy
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy

OPS = {"contrastive": "contrastive_loss", "captions": "linear_cross_entropy", "prototypes": "prototype_cross_entropy"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    assert main(["losses", "--quick", "--no-memory", "--threads", "1", "--out", str(folder)]) == 0
    return json.loads((folder / "losses-cpu-quick.json").read_text())


def test_every_peer_is_correct_or_unavailable_with_a_reason(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        for peer in case["peers"]:
            assert peer["status"] == "ok" or (peer["status"] == "not available" and peer["reason"]), (case, peer)
        status = {peer["name"]: peer["status"] for peer in case["peers"]}
        assert status[case["baseline"]] == "ok"
        assert case["name"].startswith("matrix product") or status["slap-fast, torch"] == "ok"


def test_every_backend_of_every_loss_has_a_row(result: dict[str, Any]) -> None:
    for case in result["cases"]:
        loss = case["name"].split(",")[0]
        if loss in OPS:
            names = {peer["name"] for peer in case["peers"] if peer["name"].startswith(PREFIX)}
            assert names == {PREFIX + name for name, _ in dispatch.report()[OPS[loss]]}


def test_the_loss_and_every_gradient_are_checked(result: dict[str, Any]) -> None:
    checked = {
        "contrastive, infonce": {"loss", "audio", "text", "logit_scale"},
        "contrastive, sigmoid": {"loss", "audio", "text", "logit_scale", "logit_bias"},
        "captions": {"loss", "hidden", "vocabulary"},
        "prototypes": {"loss", "student", "prototypes"},
        "matrix product": {"product"},
    }
    for case in result["cases"]:
        (expected,) = [names for name, names in checked.items() if case["name"].startswith(name)]
        for peer in case["peers"]:
            assert peer["status"] != "ok" or set(peer["errors"]) == expected


def test_the_peak_rate_is_that_of_the_matrix_product_of_the_same_dtype(result: dict[str, Any]) -> None:
    names = {case["name"] for case in result["cases"]}
    for case in result["cases"]:
        assert case["peak"] in names
        assert case["peak"].split(", ")[1] == case["name"].split(", ")[-1]


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_the_reference_of_repeated_clips_equals_that_of_the_whole_batch(kind: str) -> None:
    workload = Contrastive(12, 4, 8, torch.float32, "cpu", kind=kind)
    parameters = [x.double().requires_grad_() for x in workload.parameters()]
    loss = contrastive_loss(*parameters, kind=kind).loss
    gradients = dict(zip(workload.parameter_names, torch.autograd.grad(loss, parameters), strict=True))
    errors = relative_errors({"loss": loss, **gradients}, workload.reference())
    assert max(errors.values()) < 1e-12


def test_the_reference_of_repeated_caption_tokens_equals_that_of_all_tokens() -> None:
    workload = Captions(12, 4, 8, torch.float32, "cpu", vocabulary=9)
    hidden, vocabulary = (x.double().requires_grad_() for x in workload.parameters())
    loss = linear_cross_entropy(hidden, vocabulary, workload.target())
    hidden, vocabulary = torch.autograd.grad(loss, (hidden, vocabulary))
    errors = relative_errors({"loss": loss, "hidden": hidden, "vocabulary": vocabulary}, workload.reference())
    assert max(errors.values()) < 1e-12


def test_the_reference_of_repeated_masked_tokens_equals_that_of_all_tokens() -> None:
    workload = Prototypes(12, 4, 8, torch.float32, "cpu", prototypes=9)
    student, matrix = (x.double().requires_grad_() for x in workload.parameters())
    teacher, teacher_matrix = (x.double() for x in workload.teacher())
    loss = prototype_cross_entropy(
        student,
        teacher,
        matrix,
        teacher_matrix,
        student_temperature=workload.student_temperature,
        teacher_temperature=workload.teacher_temperature,
    )
    features, prototypes = torch.autograd.grad(loss, (student, matrix))
    errors = relative_errors({"loss": loss, "student": features, "prototypes": prototypes}, workload.reference())
    assert max(errors.values()) < 1e-12


def test_evenly_spaced_rows_of_a_large_batch_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Contrastive(24, 4, 8, torch.float32, "cpu", kind="infonce")
    whole = losses_peers.contrastive(workload, losses_peers.formula(workload)).outputs()
    monkeypatch.setattr("benchmarks.losses_workload.CHECKED_ROWS", 8)
    outputs = losses_peers.contrastive(workload, losses_peers.formula(workload)).outputs()
    assert torch.equal(outputs["text"], whole["text"][::3])
    assert max(relative_errors(outputs, workload.reference()).values()) < 1e-5


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_checkpointed_chunks_use_the_correct_positives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_peers, "CHECKPOINTED_ROWS", 5)
    workload = Contrastive(12, 12, 8, torch.float32, "cpu", kind=kind)
    outputs = losses_peers.contrastive(workload, losses_peers.checkpointed(workload)).outputs()
    assert max(relative_errors(outputs, workload.reference()).values()) < 1e-5


def test_open_clip_losses_are_loaded_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("import torchvision_that_is_not_there\n")
    (package / "loss.py").write_text(
        "class ClipLoss:\n    def __call__(self, audio, text, scale):\n        return scale\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    losses_peers._open_clip_losses.cache_clear()
    workload = Contrastive(4, 4, 8, torch.float32, "cpu", kind="infonce")
    try:
        assert not_installed("open_clip", "open_clip_torch") is None
        assert losses_peers.open_clip(workload)(1, 2, 3) == 3
    finally:
        losses_peers._open_clip_losses.cache_clear()
    assert "open_clip" not in sys.modules


def test_losses_at_scale_runs_only_if_it_is_named(tmp_path: Path) -> None:
    assert set(benchmark_names()) - set(default_names()) == {"losses_at_scale"}
    assert main(["losses_at_scale", "--quick", "--no-memory", "--threads", "1", "--out", str(tmp_path)]) == 0
    cases = json.loads((tmp_path / "losses_at_scale-cpu-quick.json").read_text())["cases"]
    assert {peer["name"] for case in cases for peer in case["peers"]} == {"torch.matmul", "slap-fast"}


def test_a_peer_that_needs_too_much_memory_is_unavailable() -> None:
    assert losses_peers.no_room(1e6, "cpu") is None
    assert "holds 1,000,000.0 GB at once" in (losses_peers.no_room(1e15, "cpu") or "")


def test_sizes_match_the_docstring() -> None:
    cases = {case.name: case for case in losses.cases(Settings())}
    tera = {name: next(iter(case.work.values())) / 1e3 for name, case in cases.items()}
    for batch, expected in (("4,096", 0.10), ("8,192", 0.41), ("16,384", 1.65), ("32,768", 6.60)):
        assert tera[f"contrastive, infonce, {batch}, fp32"] == pytest.approx(expected, abs=0.005)
        assert tera[f"contrastive, sigmoid, {batch}, fp32"] == tera[f"contrastive, infonce, {batch}, fp32"]
    assert tera["captions, 8,192, fp32"] == pytest.approx(1.27, abs=0.005)
    assert tera["prototypes, 8,000, fp32"] == pytest.approx(0.94, abs=0.005)
    assert tera["prototypes, 32,000, fp32"] == pytest.approx(3.76, abs=0.005)
    scale = {case.name: next(iter(case.work.values())) for case in losses_at_scale.cases(Settings())}
    assert scale["contrastive, infonce, 131,072, fp32"] / 1e3 == pytest.approx(106, abs=0.5)
    million = replace(losses.contrastive_workloads(4_096, Settings())[0], rows=1_048_576)
    assert million.flop / 1e15 == pytest.approx(6.8, abs=0.05)


def test_peers_that_need_a_gpu_are_not_listed_on_a_cpu() -> None:
    gpu_only = {"Liger-Kernel", "cut-cross-entropy", "Inf-CL"}
    names = {peer.name for case in losses.cases(Settings(quick=True)) for peer in case.peers}
    assert not gpu_only & names
