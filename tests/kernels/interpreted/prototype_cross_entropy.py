"""Run by tests/kernels/test_interpreted.py; alone: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/..."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from slap_fast.ops import prototype_cross_entropy
from slap_fast.ops.backends import prototype_torch, prototype_triton
from tests.ops._loss_checks import assert_as_accurate_as_plain, unit_rows
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy says log(0) aloud


# Plain Sinkhorn-Knopp overflows in float16.
CASES = [("sinkhorn", torch.float32), ("center", torch.float16), ("softmax", torch.float32)]


@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
@pytest.mark.parametrize(("centering", "dtype"), CASES)
def test_loss_and_gradients_err_at_most_twice_as_much_as_plain(centering: str, dtype: torch.dtype) -> None:
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

    assert_as_accurate_as_plain(ours, plain, [student, prototypes])


def test_only_what_is_needed_is_computed_and_strides_are_any() -> None:
    student, teacher = torch.randn(70, 2, 24).unbind(1)
    prototypes, teacher_prototypes = torch.randn(24, 90).T, torch.randn(90, 24)
    weight, temperatures = torch.rand(70), (torch.tensor(0.5), torch.tensor(0.3))
    inputs = student, teacher, prototypes, teacher_prototypes, torch.randn(90), weight, *temperatures
    expected = prototype_torch.loss_and_gradients(*inputs, True, True)
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        actual = prototype_triton.loss_and_gradients(*inputs, *needs)
        for got, wanted, needed in zip(actual, expected, (True, *needs), strict=True):
            torch.testing.assert_close(got, wanted if needed else torch.empty(0), rtol=1e-4, atol=1e-4)


def test_without_tokens() -> None:
    tokens, prototypes, one = torch.empty(0, 8), torch.randn(5, 8), torch.tensor(1.0)
    for potential in (None, torch.zeros(5)):
        mass = prototype_triton.sinkhorn_sweep(tokens, prototypes, one, potential)
        assert torch.equal(mass, torch.full((5,), -torch.inf))
        total, grad_student, grad_prototypes = prototype_triton.loss_and_gradients(
            tokens, tokens, prototypes, prototypes, potential, torch.empty(0), one, one, True, True
        )
        assert total == 0.0
        assert grad_student.shape == (0, 8)
        assert torch.equal(grad_prototypes, torch.zeros(5, 8))
