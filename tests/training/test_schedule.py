"""End points, midpoints and monotonicity of the schedules."""

from __future__ import annotations

import math

import pytest

from slap_fast.config.recipe import ObjectivesConfig, OptimizerConfig, ScheduleConfig
from slap_fast.training.schedule import ema_momentum, learning_rate, teacher_temperature

OPTIMIZER = OptimizerConfig(learning_rate=2e-3)
SCHEDULE = ScheduleConfig(steps=110, warmup_steps=10, ema_momentum=0.9, ema_final_momentum=0.98)


def test_learning_rate_warms_up_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, OPTIMIZER, SCHEDULE) for step in range(111)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[9] == rates[10] == pytest.approx(2e-3)
    assert rates[60] == pytest.approx(1e-3)
    assert rates[110] == 0.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("warmup_steps", [0, 110])
def test_without_warmup_or_with_warmup_only_all_rates_are_positive(warmup_steps: int) -> None:
    schedule = ScheduleConfig(steps=110, warmup_steps=warmup_steps)
    assert all(0 < learning_rate(step, OPTIMIZER, schedule) <= 2e-3 for step in range(110))


def test_teacher_temperature_is_linear_then_constant() -> None:
    objectives = ObjectivesConfig(teacher_temperature_start=0.04, teacher_temperature=0.08, teacher_temperature_steps=4)
    expected = [0.04, 0.05, 0.06, 0.07, 0.08, 0.08]
    assert [teacher_temperature(step, objectives) for step in range(6)] == pytest.approx(expected)


def test_momentum_rises_as_a_cosine() -> None:
    assert ema_momentum(0, SCHEDULE) == pytest.approx(0.9)
    assert ema_momentum(55, SCHEDULE) == pytest.approx(0.94)
    assert ema_momentum(110, SCHEDULE) == pytest.approx(0.98)
    quarter = 0.98 - 0.08 * (1 + math.cos(math.pi / 4)) / 2
    assert ema_momentum(110 // 4, SCHEDULE) == pytest.approx(quarter, abs=2e-3)
