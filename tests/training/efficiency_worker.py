"""Functions for two ranks of test_efficiency.py: `python -m tests.training.efficiency_worker FOLDER FUNCTION ...`."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch

from slap_fast.config.recipe import ObjectivesConfig, RunConfig
from slap_fast.planning.footprint import PassCost
from slap_fast.planning.memory import Parameters, ZeroLayout, memory
from slap_fast.training.build import checkpoint_activations
from slap_fast.training.compilation import compile_blocks
from slap_fast.training.distributed.process_group import Ranks, init_distributed
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import build_engine
from tests.training import tiny
from tests.training.worker import step_on

STEPS = 3


def with_training(config: RunConfig, **changes: Any) -> RunConfig:
    training = dataclasses.replace(config.efficiency.training, **changes)
    return dataclasses.replace(config, efficiency=dataclasses.replace(config.efficiency, training=training))


def losses(config: RunConfig, ranks: Ranks, *, compiler: str | None = None, checkpointed: bool = False) -> list[float]:
    """The losses of a few steps, each of which depends on the updates before it."""
    model = tiny.build(config)
    if checkpointed:
        checkpoint_activations(model)
    if compiler is not None:
        compile_blocks(model, backend=compiler)
    engine = build_engine(model, config, ranks)
    average = TeacherAverage(engine.module.teacher_pairs())
    return [step_on(engine, average, config, ranks, step).values["loss"] for step in range(STEPS)]


def compiled(ranks: Ranks) -> list[list[float]]:
    """Losses without and with compiled blocks."""
    config = tiny.run_config(zero_stage=2, micro_batch_size=2)
    return [losses(config, ranks), losses(config, ranks, compiler="eager", checkpointed=True)]


def offloaded(ranks: Ranks) -> dict[str, list[list[float]]]:
    """Losses without and with offloading to host memory."""
    seen = {}
    for stage, micro_batch_size in ((1, None), (1, 2), (2, 2), (3, 2)):
        config = tiny.run_config(zero_stage=stage, micro_batch_size=micro_batch_size)
        other = with_training(config, offload_optimizer=True, offload_parameters=stage == 3)
        seen[f"stage {stage}, micro-batches of {micro_batch_size}"] = [losses(config, ranks), losses(other, ranks)]
    return seen


def held(ranks: Ranks) -> dict[str, list[float]]:
    """Bytes of tensors between two steps, planned and measured."""
    seen = {}
    for stage in range(4):
        for precision in ("fp32", "bf16", "bf16, contrastive only"):
            config = tiny.run_config(zero_stage=stage, precision=precision[:4], width=128)
            if precision.endswith("only"):
                objectives = ObjectivesConfig(self_distillation_weight=0.0, caption_weight=0.0)
                config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, objectives=objectives))
            model = tiny.build(config)
            parameters = Parameters.of(model)
            engine = build_engine(model, config, ranks)
            average = TeacherAverage(engine.module.teacher_pairs())
            step_on(engine, average, config, ranks, 0)
            layout = ZeroLayout(stage, ranks.world_size, bf16=precision[:4] == "bf16", accumulated=False)
            plan = memory(parameters, layout, PassCost(0.0, 0.0, (), 0.0, 0.0, 0.0), 0.0)
            planned = plan.parameters + plan.optimizer + plan.gradients + plan.teacher
            seen[f"stage {stage}, {precision}"] = [planned, _bytes_within(engine, average)]
    return seen


def _bytes_within(*owners: object) -> int:
    """Bytes of all tensors reachable from `owners`, each storage counted once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(owners)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, ModuleType | FunctionType | type):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            waiting += [thing.grad, vars(thing)] if thing.is_leaf else [vars(thing)]
        else:
            waiting += gc.get_referents(thing)
    return sum(storages.values())


def main() -> None:
    folder, *names = sys.argv[1:]
    with init_distributed(60.0) as ranks:
        for name in names:
            result = globals()[name](ranks)
            if ranks.is_first:
                (Path(folder) / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
