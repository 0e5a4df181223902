"""Prototype kernels under Triton's interpreter.

Run by tests/kernels/test_interpreted.py; alone: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/...
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from slap_fast.kernels import variants
from slap_fast.kernels.prototype_cross_entropy import stored_scores
from slap_fast.kernels.scores import blocks
from slap_fast.ops import prototype_cross_entropy, sinkhorn_potential
from slap_fast.ops.prototype_cross_entropy import backend_torch, backend_triton
from slap_fast.ops.prototype_cross_entropy.call import PrototypeCall
from tests.ops._loss_checks import assert_as_accurate_as_plain, loss_and_gradients, unit_rows
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of log(0)


# Plain Sinkhorn-Knopp overflows in float16.
CASES = [
    ("sinkhorn", torch.float32, "stored"),
    ("sinkhorn", torch.float32, "recomputed"),
    ("center", torch.float16, "stored"),
    ("softmax", torch.float32, "stored"),
]


@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
@pytest.mark.parametrize(("centering", "dtype", "scores"), CASES)
def test_loss_and_gradients_err_at_most_twice_as_much_as_plain(centering: str, dtype: torch.dtype, scores: str) -> None:
    lengths = [40, 1, 98]
    student, prototypes = unit_rows(139, 40, seed=1, dtype=dtype), unit_rows(210, 40, seed=2, dtype=dtype)
    teacher, teacher_prototypes = unit_rows(139, 40, seed=3, dtype=dtype), unit_rows(210, 40, seed=4, dtype=dtype)
    center = torch.linspace(-0.2, 0.2, 210) if centering == "center" else None
    settings: dict[str, Any] = {
        "student_temperature": 0.1, "teacher_temperature": 0.05, "centering": centering, "sinkhorn_iterations": 2,
    }  # fmt: skip

    def ours(student: Tensor, prototypes: Tensor) -> Tensor:
        return prototype_cross_entropy(
            student, teacher.detach(), prototypes, teacher_prototypes.detach(), center=center, backend="triton",
            cu_seqlens=torch.tensor([0, 40, 41, 139]), **settings,
        )  # fmt: skip

    def plain(student: Tensor, prototypes: Tensor) -> Tensor:
        like = student.dtype
        return oracle(
            student, teacher.to(like), prototypes, teacher_prototypes.to(like), lengths=lengths,
            center=None if center is None else center.to(like), **settings,
        )  # fmt: skip

    with variants.use(prototype_scores=scores):
        assert_as_accurate_as_plain(ours, plain, [student, prototypes])


@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
@pytest.mark.parametrize(
    ("tokens", "count", "temperature", "tile"),
    [
        (1, 1, 0.04, "128x128"),
        (17, 100, 1e-3, "128x256"),
        (150, 257, 0.04, "128x256"),
        (150, 257, 1e-3, "128x128"),
    ],
)
def test_stored_scores_err_at_most_twice_as_much_as_a_product_in_float16(
    tokens: int, count: int, temperature: float, tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the lowest temperature `exp` of most scores overflows, and whole columns of targets would underflow to 0."""
    monkeypatch.setattr(stored_scores, "_CHUNK", 64)
    if tile == "128x256":
        monkeypatch.setattr(blocks, "TILE", 256)
    student, teacher = (unit_rows(tokens, 24, seed=seed, dtype=torch.float16).detach() for seed in (1, 2))
    prototypes, theirs = (unit_rows(count, 24, seed=seed, dtype=torch.float16).detach() for seed in (3, 4))

    def by_float64(scores: Tensor) -> list[Tensor]:
        """Potential, loss and gradients from given scores of the teacher."""
        logits, row = scores.double() / temperature, torch.zeros(1)
        for _ in range(3):
            potential = (logits - row).logsumexp(0)
            row = (logits - potential).logsumexp(1, keepdim=True)

        def loss(student: Tensor, prototypes: Tensor) -> Tensor:
            log_probabilities = (student @ prototypes.T / 0.1).log_softmax(1)
            return -((logits - potential).softmax(1) * log_probabilities).sum(1).mean()

        return [potential, *loss_and_gradients(loss, [student.double(), prototypes.double()])]

    def ours(student: Tensor, prototypes: Tensor) -> Tensor:
        return prototype_cross_entropy(
            student, teacher, prototypes, theirs, student_temperature=0.1, teacher_temperature=temperature,
            backend="triton",
        )  # fmt: skip

    with variants.use(prototype_tile=tile):
        potential = sinkhorn_potential(teacher, theirs, teacher_temperature=temperature, backend="triton")
        actual = [potential, *loss_and_gradients(ours, [student, prototypes])]
    plain, exact = by_float64(teacher @ theirs.T), by_float64(teacher.double() @ theirs.double().T)
    for got, peer, wanted in zip(actual, plain, exact, strict=True):
        error, peer_error = ((x - wanted).norm() for x in (got, peer))
        rounding = torch.finfo(got.dtype).eps * wanted.norm()
        if got is potential:
            rounding += 1e-6 / temperature * count**0.5  # of its logits
        assert error <= 2 * peer_error + rounding


def test_scores_beyond_the_budget_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, prototypes = unit_rows(40, 24, seed=1, dtype=torch.float32), unit_rows(70, 24, seed=2, dtype=torch.float32)
    stored = sinkhorn_potential(teacher, prototypes, teacher_temperature=0.05, backend="triton")
    monkeypatch.setattr(backend_triton, "_MAX_BYTES", 40 * 70 * 4 - 1)
    assert not backend_triton.stores_scores(teacher, prototypes)
    recomputed = sinkhorn_potential(teacher, prototypes, teacher_temperature=0.05, backend="triton")
    torch.testing.assert_close(recomputed, stored)


def test_opcheck() -> None:
    """The ops that store and read scores; the others are checked in tests/ops."""
    teacher, prototypes, temperature = torch.randn(13, 24), torch.randn(90, 24), torch.tensor(0.5)
    mass, scores = torch.ops.slap_fast.sinkhorn_first_sweep(teacher, prototypes, temperature)
    checks = ("test_schema", "test_faketensor")
    tensors = teacher, teacher, prototypes, prototypes, mass, torch.rand(13), temperature, temperature
    for op, inputs in (
        (torch.ops.slap_fast.sinkhorn_first_sweep, (teacher, prototypes, temperature)),
        (torch.ops.slap_fast.sinkhorn_later_sweep, (scores, 13, temperature, mass)),
        (torch.ops.slap_fast.prototype_cross_entropy, (*tensors, True, True, scores, "triton")),
    ):
        torch.library.opcheck(op, inputs, test_utils=checks)


def test_only_needed_gradients_are_computed_and_any_strides_work() -> None:
    student, teacher = torch.randn(70, 2, 24).unbind(1)
    prototypes, teacher_prototypes = torch.randn(24, 90).T, torch.randn(90, 24)
    weight, temperatures = torch.rand(70), (torch.tensor(0.5), torch.tensor(0.3))
    inputs = student, teacher, prototypes, teacher_prototypes, torch.randn(90), weight, *temperatures
    expected = backend_torch.loss_and_gradients(PrototypeCall(*inputs, True, True, None))
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        actual = backend_triton.loss_and_gradients(PrototypeCall(*inputs, *needs, None))
        for got, wanted, needed in zip(actual, expected, (True, *needs), strict=True):
            torch.testing.assert_close(got, wanted if needed else torch.empty(0), rtol=1e-4, atol=1e-4)


def test_without_tokens() -> None:
    tokens, prototypes, one = torch.empty(0, 8), torch.randn(5, 8), torch.tensor(1.0)
    first, scores = backend_triton.first_sweep(tokens, prototypes, one)
    later = backend_triton.later_sweep(scores, 0, one, torch.zeros(5))
    recomputed = (backend_triton.sinkhorn_sweep(tokens, prototypes, one, x) for x in (None, torch.zeros(5)))
    for result in (first, later, *recomputed):
        assert torch.equal(result, torch.full((5,), -torch.inf))
    for potential, stored in ((None, None), (torch.zeros(5), None), (torch.zeros(5), scores)):
        total, grad_student, grad_prototypes = backend_triton.loss_and_gradients(
            PrototypeCall(
                tokens, tokens, prototypes, prototypes, potential, torch.empty(0), one, one, True, True, stored
            )
        )
        assert total == 0.0
        assert grad_student.shape == (0, 8)
        assert torch.equal(grad_prototypes, torch.zeros(5, 8))
