"""The teacher's average without an engine; with one, see test_engine.py."""

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
def test_many_small_steps_add_up_in_any_precision(dtype: torch.dtype) -> None:
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
    # What is left in bf16 is the one rounding of the average to the teacher that runs.
    rounding = (expected - expected.bfloat16().double()).norm() / (expected - start).norm()
    assert error < (1e-5 if dtype == torch.float32 else 1.1 * rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_continues_from_its_state(dtype: torch.dtype) -> None:
    student, teacher = modules(dtype)
    average = TeacherAverage(pairs(student, teacher))
    average.update(0.9)
    state = {name: value.clone() for name, value in average.state_dict(rank=0).items()}
    saved = {name: value.clone() for name, value in teacher.state_dict().items()}
    average.update(0.9)

    other = modules(dtype, seed=8)[1]
    other.load_state_dict(saved)
    resumed = TeacherAverage(pairs(student, other))
    resumed.load_state_dict(state)
    resumed.update(0.9)
    assert torch.equal(flat(other), flat(teacher))
    for name, value in average.state_dict(rank=0).items():
        assert torch.equal(resumed.state_dict(rank=0)[name], value)


def test_only_the_first_rank_stores_a_replica() -> None:
    average = TeacherAverage(pairs(*modules(torch.bfloat16)))
    assert average.state_dict(rank=0).keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert average.state_dict(rank=1) == {}
