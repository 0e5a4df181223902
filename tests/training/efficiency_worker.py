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

from slap_fast.config.recipe import RunConfig
from slap_fast.planning.footprint import PassCost
from slap_fast.planning.memory import Parameters, ZeroLayout, memory
from slap_fast.training.build import checkpoint_activations
from slap_fast.training.compilation import compile_blocks
from slap_fast.training.distributed.process_group import Ranks, init_distributed
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import build_engine
from tests.training import tiny
from tests.training.ranks import HUNG
from tests.training.worker import step_on

STEPS = 3
CONTRASTIVE_ONLY = {"self_distillation_weight": 0.0, "caption_weight": 0.0}


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
    """Losses without and with compiled blocks, of the towers only: test_efficiency.py compiles all parts.

    Rank 0 alone compiles, while the other waits: both would compile the same.
    """
    config = tiny.changed(tiny.run_config(zero_stage=2, micro_batch_size=2), objectives=CONTRASTIVE_ONLY)
    return [
        losses(config, ranks),
        losses(config, ranks, compiler="eager" if ranks.is_first else None, checkpointed=True),
    ]


# (stage, micro-batch size)
OFFLOADED = ((1, None), (1, 2), (2, 2), (3, 2))


def offloaded(ranks: Ranks) -> list[list[float]]:
    """Losses without offloading, and for each of `OFFLOADED` with offloading to host memory."""
    seen = [losses(tiny.run_config(zero_stage=2, micro_batch_size=2), ranks)]
    for stage, micro_batch_size in OFFLOADED:
        config = tiny.run_config(zero_stage=stage, micro_batch_size=micro_batch_size)
        seen.append(losses(with_training(config, offload_optimizer=True, offload_parameters=stage == 3), ranks))
    return seen


# In bf16, stages 1 and 2 hold the same between two steps, and so they do in fp32.
HELD = [(0, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16"), (2, "bf16, contrastive only")]


def held(ranks: Ranks) -> dict[str, list[float]]:
    """Bytes of tensors between two steps, planned and measured."""
    seen = {}
    for stage, precision in HELD:
        config = tiny.run_config(zero_stage=stage, precision=precision[:4], width=128)
        if precision.endswith("only"):
            config = tiny.changed(config, objectives=CONTRASTIVE_ONLY)
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
    with init_distributed(HUNG) as ranks:
        for name in names:
            result = globals()[name](ranks)
            if ranks.is_first:
                (Path(folder) / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
