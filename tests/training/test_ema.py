"""The teacher's average without an engine; test_zero.py tests it with DeepSpeed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slap_fast.training.ema import TeacherAverage


def modules(dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(dtype)
    torch.manual_seed(seed + 1)
    teacher = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(dtype).requires_grad_(False)
    return student, teacher


def pairs(student: nn.Module, teacher: nn.Module) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    return [(name, parameter, dict(student.named_parameters())[name]) for name, parameter in teacher.named_parameters()]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_small_updates_accumulate_in_any_precision(dtype: torch.dtype) -> None:
    student, teacher = modules(dtype)
    average = TeacherAverage(pairs(student, teacher))
    start = expected = flat(teacher)
    generator = torch.Generator().manual_seed(5)
    for _ in range(300):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        average.update(0.999)
        expected = 0.999 * expected + 0.001 * flat(student)
    error = (flat(teacher) - expected).norm() / (expected - start).norm()
    # In bf16 the only error left is the rounding of the average to the teacher of the forward pass.
    rounding = (expected - expected.bfloat16().double()).norm() / (expected - start).norm()
    assert error < (1e-5 if dtype == torch.float32 else 1.1 * rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype_before", [torch.float32, torch.bfloat16])
def test_an_average_is_restored_from_its_slices_in_any_precision(dtype_before: torch.dtype, dtype: torch.dtype) -> None:
    student, teacher = modules(dtype_before)
    average = TeacherAverage(pairs(student, teacher))
    average.update(0.9)

    student_after, teacher_after = modules(dtype, seed=8)
    resumed = TeacherAverage(pairs(student_after, teacher_after))
    for saved, restored in zip(average.slices(), resumed.slices(), strict=True):
        assert (saved.kind, saved.name, saved.offset) == (restored.kind, restored.name, restored.offset)
        assert saved.value.dtype == restored.value.dtype == torch.float32
        restored.value.copy_(saved.value)
    resumed.publish()
    assert torch.equal(flat(teacher_after), torch.cat([part.value for part in average.slices()]).to(dtype).double())

    student_after.load_state_dict(student.state_dict())
    student.load_state_dict(student_after.state_dict())
    average.update(0.9)
    resumed.update(0.9)
    for expected, value in zip(average.slices(), resumed.slices(), strict=True):
        assert torch.equal(value.value, expected.value)


def test_every_rank_holds_the_same_average_unless_it_is_sharded() -> None:
    slices = TeacherAverage(pairs(*modules(torch.bfloat16))).slices()
    assert [part.name for part in slices] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(part.replicated and part.offset == 0 for part in slices)
