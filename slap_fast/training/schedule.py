"""Schedules of learning rate, teacher temperature and EMA momentum, as pure functions of the step.

A resumed run therefore continues exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from slap_fast.config.recipe import ObjectivesConfig, OptimizerConfig, Recipe, ScheduleConfig


@dataclass(frozen=True)
class StepSettings:
    """Scheduled values of one step."""

    learning_rate: float
    teacher_temperature: float
    ema_momentum: float


def settings(step: int, recipe: Recipe) -> StepSettings:
    """The settings of `step`, counted from 0."""
    return StepSettings(
        learning_rate=learning_rate(step, recipe.optimizer, recipe.schedule),
        teacher_temperature=teacher_temperature(step, recipe.objectives),
        ema_momentum=ema_momentum(step, recipe.schedule),
    )


def learning_rate(step: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Linear warmup to the peak, then a cosine to 0. `step` counts from 0; the first step has a rate above 0."""
    if step < schedule.warmup_steps:
        return optimizer.learning_rate * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return optimizer.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def teacher_temperature(step: int, objectives: ObjectivesConfig) -> float:
    """Linear from `teacher_temperature_start` to `teacher_temperature`, then constant (DINOv2)."""
    progress = min(1.0, step / max(1, objectives.teacher_temperature_steps))
    start = objectives.teacher_temperature_start
    return start + (objectives.teacher_temperature - start) * progress


def ema_momentum(step: int, schedule: ScheduleConfig) -> float:
    """Cosine from `ema_momentum` to `ema_final_momentum` over the run (paper)."""
    progress = min(1.0, step / schedule.steps)
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.ema_final_momentum - (schedule.ema_final_momentum - schedule.ema_momentum) * remaining
