"""`python -m benchmarks.objectives DATASET`: training with the contrastive loss alone, against all three, and the plan.

Two ranks on this machine's CPU train the quickstart recipe on DATASET (of `slap-fast prepare --synthetic`) at each ZeRO
stage. Both models are in one process and take turns, so other load disturbs both alike; a step is the fastest of the
rounds, and its ratio the median over the rounds. Peak memory is that of a process with one of the models, beyond what
it holds before the model is built. Gradients are what the collectives of a step reduce. Planned figures are those of
`slap-fast plan`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Settings
from benchmarks.harness.process_memory import status_bytes
from benchmarks.harness.ranks import run_ranks
from benchmarks.harness.results import build_result, save_result

RANKS = 2
ROUNDS = 12
BATCH_SIZE = 32
MODELS = {
    "all three": (),
    "contrastive": ("objectives.self_distillation_weight=0", "objectives.caption_weight=0"),
}
COLUMNS = ["two ranks", "clips/s", "planned", "memory, MB", "planned", "parameters, M", "gradients sent, MB"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="folder to write the figures to, as a result of this benchmark")
    parser.add_argument("--rank", nargs="+", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.rank is not None:
        _run_rank(options)
        return 0
    rows: list[list[str | float]] = []
    print(" | ".join(COLUMNS))
    for stage in range(4):
        rows += (new := _rows(options, stage))
        for row in new:
            print(f"{row[0]} | {' | '.join(f'{value:.3g}' for value in row[1:])}", flush=True)
    if options.out is not None:
        settings = Settings(device="cpu", threads=1, rounds=options.rounds)
        result = build_result("objectives", "Contrastive loss alone, against all three objectives", [], settings)
        save_result(result | {"table": {"columns": COLUMNS, "rows": rows}}, options.out)
    return 0


def _rows(options: argparse.Namespace, stage: int) -> list[list[str | float]]:
    """A row per model, and their ratio: contrastive to all three in speed, all three to contrastive in the rest."""
    together = _on_ranks(options, stage, list(MODELS))
    rows: list[list[str | float]] = []
    for name in MODELS:
        planned, found = _planned(options, stage, name), together[name]
        (alone,) = _on_ranks(options, stage, [name]).values()
        rate, planned_rate = BATCH_SIZE / min(found["seconds"]), BATCH_SIZE / planned["seconds"]
        memory = [alone["peak"] / 1e6, planned["memory"] / 1e6]
        rows.append(
            [f"stage {stage}, {name}", rate, planned_rate, *memory, planned["parameters"] / 1e6, found["reduced"] / 1e6]
        )
    every, alone_row = rows
    pairs = zip(*(together[name]["seconds"] for name in MODELS), strict=True)
    ratios = [float(a) / float(b) for a, b in zip(every[3:], alone_row[3:], strict=True)]
    speedup = statistics.median(both / one for both, one in pairs)
    return [*rows, [f"stage {stage}, ratio", speedup, float(alone_row[2]) / float(every[2]), *ratios]]


def _arguments(options: argparse.Namespace, stage: int, name: str) -> list[str]:
    keys = [
        f"training.zero_stage={stage}",
        f"training.precision={options.precision}",
        f"schedule.batch_size={BATCH_SIZE}",
    ]
    return ["recipe=quickstart", f"data.train={options.dataset}", *keys, *MODELS[name]]


def _planned(options: argparse.Namespace, stage: int, name: str) -> dict[str, float]:
    from slap_fast.planning.planner import make_plan
    from slap_fast.planning.request import parse_request

    plan = make_plan(parse_request([*_arguments(options, stage, name), f"devices={RANKS}", "device=cpu"]))
    return {
        "memory": plan.asked.memory.peak,
        "seconds": plan.asked.time.total,
        "parameters": float(plan.parameters.total),
    }


def _on_ranks(options: argparse.Namespace, stage: int, names: list[str]) -> dict[str, Any]:
    """Results of rank 0 by model."""
    command = ["benchmarks.objectives", str(options.dataset), "--precision", options.precision]
    command += ["--rounds", str(options.rounds), "--stage", str(stage), "--rank", *names]
    return run_ranks(command, RANKS, timeout=900, environment={"OMP_NUM_THREADS": "1"})[0]


def _run_rank(options: argparse.Namespace) -> None:
    """Train the named models in turns on the first batch; the last line of the output has the results."""
    from slap_fast.runtime.cpu import configure_cpu_environment

    configure_cpu_environment()
    import torch.distributed as dist

    from benchmarks.communication import Communication
    from slap_fast.training.distributed.process_group import import_deepspeed, init_distributed

    import_deepspeed()
    with init_distributed(600.0) as ranks:
        parts = {name: _load(_arguments(options, options.stage, name), ranks) for name in options.rank}
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
        before = status_bytes("VmRSS")
        steps = {name: _trainer(ranks, *part) for name, part in parts.items()}
        results: dict[str, Any] = {}
        for name, step in steps.items():
            step()
            with Communication() as communication:
                step()
            sent = communication.bytes
            # A scattered reduction also has this rank's part: its result.
            scattered = sent.get("_reduce_scatter_base_", 0) / (1 + 1 / ranks.world_size)
            results[name] = {"reduced": sent.get("allreduce_", 0) + scattered, "seconds": []}
        gc.collect()
        for _ in range(options.rounds if len(steps) > 1 else 2):
            for name, step in steps.items():
                dist.barrier()
                began = time.perf_counter()
                step()
                results[name]["seconds"].append(time.perf_counter() - began)
        for result in results.values():
            result["peak"] = status_bytes("VmHWM") - before
        if ranks.is_first:
            print(json.dumps(results), flush=True)


def _load(arguments: list[str], ranks: Any) -> tuple[Any, ...]:
    """Everything but the model: configuration, model configuration, tokenizer, and this rank's first batch."""
    import transformers.models.modernbert.modeling_modernbert  # noqa: F401 - before memory is measured

    from slap_fast.config.loading import config_from_arguments
    from slap_fast.data.sampling.mixture import Mixture
    from slap_fast.training import build

    config = config_from_arguments(arguments)
    recipe = config.recipe
    datasets = Mixture.open([(part.folder, part.weight) for part in recipe.data.folders])
    tokenizer = build.build_tokenizer(recipe.data, recipe.model)
    model_config = build.complete_model_config(recipe.model, datasets, tokenizer)
    sampler = build.build_sampler(recipe, datasets)
    with build.build_loader(config, datasets, sampler, model_config, tokenizer, ranks, range(1)) as loader:
        ((_, batch),) = loader
    return config, model_config, tokenizer, batch


def _trainer(ranks: Any, config: Any, model_config: Any, tokenizer: Any, batch: Any) -> Callable[[], object]:
    """A function that trains on the same batch at each call."""
    from slap_fast.training import build, schedule
    from slap_fast.training.ema import TeacherAverage
    from slap_fast.training.engine import build_engine
    from slap_fast.training.step import take_step

    engine = build_engine(build.build_model(config, model_config, tokenizer), config, ranks)
    average = TeacherAverage(engine.module.teacher_pairs())
    settings = schedule.settings(0, config.recipe)
    return lambda: take_step(engine, average, batch, settings, stop=False, audio_seconds=1.0)


if __name__ == "__main__":
    raise SystemExit(main())
