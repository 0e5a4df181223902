"""Functions that the multi-rank tests run on every rank: `python -m tests.training.worker FOLDER FUNCTION ...`."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import shutil
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.communication import Communication
from slap_fast.config.model import OBJECTIVES
from slap_fast.config.recipe import EvaluationConfig, ObjectivesConfig, RateMultipliersConfig, RunConfig
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.errors import ModelError
from slap_fast.evaluation.in_loop import InLoopEvaluation
from slap_fast.models.slap import SLAP
from slap_fast.training import engine as engine_module
from slap_fast.training.accumulation import accumulate_gradients
from slap_fast.training.build import checkpoint_activations
from slap_fast.training.checkpoint.export import export_checkpoint, full_weights
from slap_fast.training.checkpoint.manager import CheckpointError, CheckpointManager
from slap_fast.training.distributed.process_group import Ranks, init_distributed
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import build_engine, set_learning_rate
from slap_fast.training.initial_weights import files_digest, find_source, require_same_files
from slap_fast.training.metrics.nonfinite import MAX_SKIPPED_IN_A_ROW, DivergedError, NonFiniteGuard
from slap_fast.training.metrics.step_metrics import LOSSES, METRICS, MetricReducer, StepMetrics
from slap_fast.training.model import PretrainingModel
from slap_fast.training.schedule import settings
from slap_fast.training.step import take_step
from slap_fast.training.zero import discard_stale_gradients, inner_optimizer, parameter_shapes
from tests.training import tiny

TEMPERATURE = 0.05
LARGE_BATCH = 512
# `accumulation` covers all stages; these two differ most.
LARGE_BATCH_STAGES = (0, 3)
# (micro_batch_size of the 3 clips of a rank, shared_pass, activation checkpointing)
ACCUMULATIONS = ((2, False, False), (1, True, False), (None, False, True), (2, False, True))


def gradients(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Per ZeRO stage, the relative error of each parameter's gradient against one process with the whole batch."""
    errors: dict[str, dict[str, float]] = {}
    for stage in range(4):
        config = tiny.run_config(zero_stage=stage, clipping=0.0, exchange="ring" if stage == 1 else "gather")
        alone = tiny.build(config)
        model = tiny.build(config)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        engine = build_engine(model, config, ranks, optimizer)
        # Twice, with an update between: gradients that the first step leaves behind would show in the second.
        for step in range(2):
            alone.zero_grad()
            outputs = alone(tiny.batch(config, step), TEMPERATURE)
            outputs["loss"].backward()
            discard_stale_gradients(engine)
            own = engine(tiny.batch(config, step, ranks.rank, ranks.world_size), TEMPERATURE, dist.group.WORLD)
            engine.backward(own["loss"])
            errors[f"stage {stage}, step {step}"] = gradient_errors(engine, alone)
            engine.step()
            with torch.no_grad():
                for parameter in alone.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(1e-2 * parameter.grad)
    return errors


def single_objectives(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Per ZeRO stage, for each objective alone and for all: errors of gradients, without and with micro-batches, of a
    model with all parts and the same weights; numbers of elements; and bytes that a step communicates."""
    seen: dict[str, Any] = {}
    for stage, objective in product(range(4), (*OBJECTIVES, "all")):
        config = tiny.run_config(zero_stage=stage, clipping=0.0)
        alone = tiny.build(config)
        chosen = OBJECTIVES if objective == "all" else (objective,)
        weights: dict[str, Any] = {f"{name}_weight": float(name in chosen) for name in OBJECTIVES}
        alone.objectives = ObjectivesConfig(**weights)
        model = PretrainingModel(config.recipe.model, alone.objectives)
        model.load_state_dict({name: alone.state_dict()[name] for name in model.state_dict()})
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        engine = build_engine(model, config, ranks)
        average = TeacherAverage(engine.module.teacher_pairs())
        errors = {}
        for micro_batch_size in (None, 2):
            alone.zero_grad()
            alone(tiny.batch(config, 0), TEMPERATURE)["loss"].backward()
            discard_stale_gradients(engine)
            own = tiny.batch(config, 0, ranks.rank, ranks.world_size)
            if micro_batch_size is None:
                engine.backward(engine(own, TEMPERATURE, dist.group.WORLD)["loss"])
            else:
                accumulate_gradients(engine, own, TEMPERATURE, micro_batch_size, dist.group.WORLD)
            errors[f"micro-batches of {micro_batch_size}"] = gradient_errors(engine, alone)
            set_learning_rate(engine, 0.0)
            engine.step()
        with Communication() as communication:
            step_on(engine, average, config, ranks, 1)
        states = inner_optimizer(engine).state.values()
        seen[f"stage {stage}, {objective}"] = {
            "gradients": errors,
            "trained": trained,
            "states": sum(state["exp_avg"].numel() for state in states),
            "averaged": sum(part.value.numel() for part in average.slices()),
            "communicated": dict(communication.bytes),
        }
    return seen


def accumulation(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Per ZeRO stage, the errors of gradients and outputs with micro-batches against one process without."""
    seen: dict[str, Any] = {}
    for stage in range(4):
        config = tiny.run_config(zero_stage=stage, clipping=0.0)
        alone, model = tiny.build(config), tiny.build(config)
        # A learning rate of 0 keeps the parameters equal. A new batch each step would reveal stale gradients.
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        engine = build_engine(model, config, ranks, optimizer)
        for step, (micro_batch_size, shared_pass, checkpointed) in enumerate(ACCUMULATIONS):
            for module in (alone, engine.module):
                module.objectives = dataclasses.replace(module.objectives, shared_pass=shared_pass)
            if checkpointed:
                checkpoint_activations(engine.module)
            seen[f"stage {stage}, case {step}"] = micro_batch_errors(
                engine, alone, config, ranks, step, micro_batch_size
            )
    return seen


def large_batch(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Errors against float64: many clips in micro-batches of 8, and one process with all clips at once."""

    def at_once(dtype: torch.dtype) -> tuple[PretrainingModel, Tensor]:
        config = tiny.run_config(clipping=0.0, batch_size=LARGE_BATCH)
        model = tiny.build(config).to(dtype)
        outputs = model(tiny.batch(config, 0), TEMPERATURE)
        outputs["loss"].backward()
        return model, torch.stack([outputs[name].detach().to(dtype) for name in (*LOSSES, *METRICS)])

    alone, values = at_once(torch.float32)
    exact, wanted = at_once(torch.float64)
    pairs = zip(alone.named_parameters(), exact.parameters(), strict=True)
    peers = {
        name: relative_error(x.grad, y.grad) for (name, x), y in pairs if x.grad is not None and y.grad is not None
    }
    seen: dict[str, Any] = {"at once": {"gradients": peers, "outputs": relative_error(values, wanted)}}
    for stage in LARGE_BATCH_STAGES:
        config = tiny.run_config(zero_stage=stage, clipping=0.0, batch_size=LARGE_BATCH)
        engine = build_engine(tiny.build(config), config, ranks)
        own = tiny.batch(config, 0, ranks.rank, ranks.world_size)
        outputs = accumulate_gradients(engine, own, TEMPERATURE, 8, dist.group.WORLD)
        values = torch.stack([outputs[name].detach() for name in (*LOSSES, *METRICS)])
        dist.all_reduce(values)
        seen[f"stage {stage}"] = {
            "gradients": gradient_errors(engine, exact),
            "outputs": relative_error(values / ranks.world_size, wanted),
        }
    return seen


def micro_batch_errors(
    engine: Any, alone: PretrainingModel, config: RunConfig, ranks: Ranks, step: int, micro_batch_size: int | None
) -> dict[str, Any]:
    alone.zero_grad()
    expected = alone(tiny.batch(config, step), TEMPERATURE)
    expected["loss"].backward()
    discard_stale_gradients(engine)
    own = tiny.batch(config, step, ranks.rank, ranks.world_size)
    if micro_batch_size is None:
        outputs = engine(own, TEMPERATURE, dist.group.WORLD)
        engine.backward(outputs["loss"])
    else:
        outputs = accumulate_gradients(engine, own, TEMPERATURE, micro_batch_size, dist.group.WORLD)
    errors = gradient_errors(engine, alone)
    engine.step()
    values = torch.stack([outputs[name].detach() for name in (*LOSSES, *METRICS)])
    dist.all_reduce(values)
    wanted = torch.stack([expected[name].detach() for name in (*LOSSES, *METRICS)])
    return {"gradients": errors, "outputs": relative_error(values / ranks.world_size, wanted)}


def step_metrics(ranks: Ranks, folder: Path) -> dict[str, dict[str, float]]:
    """Reduced metrics of five clips, three on one rank and two on the other, and those of one process."""
    config = tiny.run_config()
    schedule = dataclasses.replace(config.recipe.schedule, batch_size=5)
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, schedule=schedule))
    model = tiny.build(config)
    with torch.no_grad():
        own = tiny.batch(config, 0, ranks.rank, ranks.world_size)
        outputs = model(own, TEMPERATURE, dist.group.WORLD, True)
        whole = model(tiny.batch(config, 0), TEMPERATURE, None, True)
    counts = {"clips": float(len(own)), "tokens": 10.0**ranks.rank}
    reduced = MetricReducer(outputs, counts, {"memory": 3.0 - ranks.rank, "wait": float(ranks.rank)}).result()
    return {
        "reported": reduced._asdict(),
        "expected": {name: float(whole[name]) for name in (*LOSSES, *METRICS, "prototype_entropy")},
    }


def gradient_errors(engine: Any, alone: PretrainingModel) -> dict[str, float]:
    """`{name: relative error}` of each trained parameter. A collective call."""
    from deepspeed.utils import safe_get_full_grad

    errors = {}
    wanted = dict(alone.named_parameters())
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            expected = wanted[name]
            assert expected.grad is not None, name
            errors[name] = relative_error(safe_get_full_grad(parameter), expected.grad)
    return errors


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm().clamp_min(1e-12))


def start_run(
    config: RunConfig, ranks: Ranks, folder: Path, seed: int = 0
) -> tuple[Any, TeacherAverage, CheckpointManager]:
    engine = build_engine(tiny.build(config, seed), config, ranks)
    average = TeacherAverage(engine.module.teacher_pairs())
    return engine, average, CheckpointManager(folder, engine, average, config)


def step_on(
    engine: Any, average: TeacherAverage, config: RunConfig, ranks: Ranks, step: int, *, poison: bool = False
) -> StepMetrics:
    batch = tiny.batch(config, step, ranks.rank, ranks.world_size)
    if poison:
        batch = tiny.poisoned(batch)
    return take_step(
        engine,
        average,
        batch,
        settings(step, config.recipe),
        stop=False,
        audio_seconds=1.0,
        micro_batch_size=config.efficiency.training.micro_batch_size,
        detailed=True,
    )


def step_on_with_overflow(engine: Any, average: TeacherAverage, config: RunConfig, ranks: Ranks) -> StepMetrics:
    """A step with finite losses and, on the last rank, an infinite gradient in the text encoder."""
    weight = next(engine.module.student.text_encoder.parameters())
    factor = float("inf") if ranks.rank == ranks.world_size - 1 else 1.0
    hook = weight.register_hook(lambda gradient: gradient * factor)
    try:
        return step_on(engine, average, config, ranks, 9)
    finally:
        hook.remove()


def lifecycle(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Per stage and precision: train, save half-way, resume in a new engine, and skip steps with NaN or infinity."""
    seen = {}
    for precision, stage in product(("fp32", "bf16"), range(4)):
        # Stages 1 and 2 differ in how gradients are reduced, which float32 shows best.
        if (precision, stage) != ("bf16", 2):
            config = tiny.run_config(zero_stage=stage, precision=precision)
            seen[f"{precision}, stage {stage}"] = _train_and_resume(config, ranks, folder / f"{precision}-{stage}")
    # With micro-batches, DeepSpeed uses another optimizer in bf16; at stage 0 the check for infinity is ours.
    for precision, stage in (("fp32", 0), ("bf16", 1)):
        config = tiny.run_config(zero_stage=stage, precision=precision, micro_batch_size=2, async_checkpoints=False)
        seen[f"{precision}, stage {stage}, micro-batches"] = _train_and_resume(
            config, ranks, folder / f"{precision}-{stage}-micro-batches"
        )
    return seen


def _train_and_resume(config: RunConfig, ranks: Ranks, folder: Path) -> dict[str, Any]:
    engine, average, checkpoints = start_run(config, ranks, folder)
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    followed = {name: names[student] for name, _, student in engine.module.teacher_pairs()}
    start = full_weights(engine, engine.module)
    expected = {name: start[name].double() for name in followed if ranks.is_first}
    losses, norms = [], []
    for step in range(4):
        if step == 2:
            checkpoints.save(2, skipped_steps=1)
        report = step_on(engine, average, config, ranks, step)
        losses.append(report.values)
        norms.append({"grad_norm": report.grad_norm, **report.grad_norms})
        checkpoints.poll()
        current = full_weights(engine, engine.module)
        for name, value in expected.items():
            value.lerp_(current[followed[name]].double(), 1.0 - settings(step, config.recipe).ema_momentum)
    drift = 0.0
    if ranks.is_first:
        moved = sum(float((expected[name] - start[name]).square().sum()) for name in expected)
        error = sum(float((expected[name] - current[name]).square().sum()) for name in expected)
        drift = (error / moved) ** 0.5
    checkpoints.finish()

    engine, average, checkpoints = start_run(config, ranks, folder, seed=1)
    resumed = checkpoints.resume()
    again = [step_on(engine, average, config, ranks, 2).values]
    before, averaged = full_weights(engine, engine.module), [part.value.clone() for part in average.slices()]
    bad = step_on(engine, average, config, ranks, 9, poison=ranks.rank == ranks.world_size - 1)
    overflow = step_on_with_overflow(engine, average, config, ranks)
    after = full_weights(engine, engine.module)
    kept = all(torch.equal(value, part.value) for value, part in zip(averaged, average.slices(), strict=True))
    # The step after the skipped ones is as if they had never been.
    again.append(step_on(engine, average, config, ranks, 3).values)
    return {
        "losses": losses,
        "resumed": [resumed.step, resumed.skipped_steps],
        "resumed_losses": again,
        "teacher_error": drift,
        "norms": norms,
        "nonfinite": bad.nonfinite,
        "overflow": overflow.nonfinite,
        "unchanged": kept and all(torch.equal(before[name], after[name]) for name in before),
        "average_types": sorted({str(value.dtype) for value in averaged}),
        "average_share": sum(value.numel() for value in averaged) / sum(start[name].numel() for name in expected)
        if ranks.is_first
        else 0.0,
    }


def scoring(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Losses of two steps with an evaluation in between, its scores, and whether it saved the student."""
    seen = {}
    for precision, stage in (("fp32", 0), ("bf16", 1), ("fp32", 3)):
        config = tiny.run_config(zero_stage=stage, precision=precision)
        engine, average, _ = start_run(config, ranks, folder)
        engine.module.student.tokenizer = tiny.WordTokenizer()
        best = folder / f"best-{precision}-{stage}"
        evaluation = InLoopEvaluation(
            EvaluationConfig(zero_shot=str(folder / "classes"), metric="zero_shot"), best, ranks
        )
        losses = [step_on(engine, average, config, ranks, 0).values]
        random_state, weights = torch.get_rng_state(), full_weights(engine, engine.module.student)
        evaluated = [evaluation.run(engine, 1)]
        engine.module.student.tokenizer = None
        evaluated.append(evaluation.run(engine, 1))
        losses.append(step_on(engine, average, config, ranks, 1).values)
        seen[f"{precision}, stage {stage}"] = {
            "losses": losses,
            "scores": [each.scores for each in evaluated],
            "notes": [each.notes for each in evaluated],
            "random state kept": torch.equal(random_state, torch.get_rng_state()),
        }
        if ranks.is_first:
            saved = SLAP.from_pretrained(best).state_dict()
            seen[f"{precision}, stage {stage}"]["best"] = all(
                torch.equal(saved[name], weights[name]) for name in weights
            )
    return seen


FROZEN = ("audio_encoder", "text_encoder", "logit_scale")
# (precision, stage, micro-batch size, offloading). At stage 2 in float32, frozen parameters are held as at stage 0, and
# the optimizer is that of stage 1.
FROZEN_RUNS: list[tuple[str, int, int | None, bool]]
FROZEN_RUNS = [("fp32", 0, None, False), ("fp32", 3, None, False), ("bf16", 1, 2, False), ("bf16", 3, None, False)]
FROZEN_RUNS += [("bf16", 3, 2, True)]


def frozen_run(precision: str, stage: int, offload: bool) -> str:
    return f"{precision}, stage {stage}{', offloaded' if offload else ''}"


def frozen(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Each of `FROZEN_RUNS`: a run with frozen parts, resumed after its first step."""
    seen = {}
    for precision, stage, micro_batch_size, offload in FROZEN_RUNS:
        config = tiny.run_config(zero_stage=stage, precision=precision, micro_batch_size=micro_batch_size)
        config = tiny.changed(config, model={"freeze": FROZEN})
        training = dataclasses.replace(
            config.efficiency.training, offload_optimizer=offload, offload_parameters=offload
        )
        config = dataclasses.replace(config, efficiency=dataclasses.replace(config.efficiency, training=training))
        name = frozen_run(precision, stage, offload)
        seen[name] = _train_frozen(config, ranks, folder / f"frozen {name}")
    return seen


def initial_files(ranks: Ranks, folder: Path) -> list[str]:
    """Messages of the check that ranks start from the same files: if they do, and with each file changed on rank 1."""
    own = folder / f"rank-{ranks.rank}"
    torch.manual_seed(0)
    model = SLAP(tiny.model_config())
    model.tokenizer = train_tokenizer(["a dog barks"], 300)
    model.save_pretrained(own)
    messages = []
    for changed in (None, "config.json", "model.safetensors", "tokenizer/tokenizer.json"):
        if changed is not None and ranks.rank == 1:
            file = own / changed
            file.write_bytes(file.read_bytes() + b" ")
        source = find_source(str(own))
        try:
            require_same_files(source, files_digest(source), ranks.device)
            messages.append("no error")
        except ModelError as error:
            messages.append(str(error))
        if changed is not None and ranks.rank == 1:
            file.write_bytes(file.read_bytes()[:-1])
    return messages


def _train_frozen(config: RunConfig, ranks: Ranks, folder: Path) -> dict[str, Any]:
    start = tiny.build(config).student.state_dict()
    engine, average, checkpoints = start_run(config, ranks, folder)
    losses = [step_on(engine, average, config, ranks, 0).values]
    checkpoints.save(1, 0)
    checkpoints.finish()
    report = step_on(engine, average, config, ranks, 1)
    state = [state["exp_avg"].numel() for state in inner_optimizer(engine).state.values()]
    moments = torch.tensor([float(sum(state))])
    dist.all_reduce(moments)
    trained = [shape for name, shape in parameter_shapes(engine.module).items() if _is_trained(engine, name)]

    again, average_again, resuming = start_run(config, ranks, folder, seed=1)
    resuming.resume()
    exported: dict[str, torch.Tensor] = {}
    if ranks.is_first:
        export_checkpoint(folder / "step-00000001", folder / "exported")
        exported = load_file(folder / "exported" / "model.safetensors")
    weights, resumed = full_weights(engine, engine.module.student), full_weights(again, again.module.student)
    held = [name for name in start if name.startswith(FROZEN)]
    resuming = CheckpointManager(folder, again, average_again, tiny.changed(config, model={"freeze": FROZEN[:1]}))
    return {
        "losses": [*losses, report.values],
        "resumed_losses": step_on(again, average_again, config, ranks, 1).values,
        "kept": all(
            torch.equal(start[name], found[name])
            for name in held
            for found in (weights, resumed, exported)
            if ranks.is_first
        ),
        "moved": [name for name in weights if not torch.equal(start[name], weights[name])],
        "teacher": average.names,
        "norms": sorted(report.grad_norms),
        "moments": float(moments),
        "trained": sum(math.prod(shape) for shape in trained),
        "gradients": [
            name for name, p in engine.module.named_parameters() if not p.requires_grad and p.grad is not None
        ],
        "refused": _message(resuming.resume),
    }


def _is_trained(engine: Any, name: str) -> bool:
    return engine.module.get_parameter(name).requires_grad


def part_rates(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Per stage, the size of each parameter's first update relative to that with one learning rate."""
    rates = RateMultipliersConfig(text_encoder=0.1, caption_decoder=4.0)
    updates: dict[str, dict[str, float]] = {}
    for stage in (1, 3):
        config = tiny.run_config(zero_stage=stage)
        sizes = []
        for optimizer in ({}, {"rate_multipliers": rates, "layer_decay": 0.5}):
            changed = tiny.changed(config, optimizer=optimizer)
            engine, average, _ = start_run(changed, ranks, folder)
            before = full_weights(engine, engine.module.student)
            step_on(engine, average, changed, ranks, 0)
            after = full_weights(engine, engine.module.student)
            sizes.append({name: float((after[name] - before[name]).norm()) for name in before})
        updates[f"stage {stage}"] = {name: sizes[1][name] / size for name, size in sizes[0].items() if size}
    return updates


def diverging(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Skipped steps in a row, and the record and error that `NonFiniteGuard` gives."""
    guard = NonFiniteGuard()
    record: dict[str, Any] = {}
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        record = guard.record_skipped(step, ["caption"], [f"clip-{ranks.rank}"])
    guard.record_applied()
    try:
        for step in range(MAX_SKIPPED_IN_A_ROW):
            guard.record_skipped(step, ["caption"], [f"clip-{ranks.rank}"])
    except DivergedError as error:
        return {"record": record, "error": str(error), "skipped": guard.skipped_steps}
    return {"error": "none"}


def checkpoint_errors(ranks: Ranks, folder: Path) -> dict[str, str]:
    """Messages for checkpoints that cannot be written or resumed from, at ZeRO stage 2."""
    messages = {}
    config = tiny.run_config(zero_stage=2)
    engine, average, checkpoints = start_run(config, ranks, folder / "run")
    step_on(engine, average, config, ranks, 0)
    checkpoints.save(1, 0)
    step_on(engine, average, config, ranks, 1)
    checkpoints.finish()

    if ranks.rank == ranks.world_size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    # `save` itself succeeds; `poll` raises the error of its thread.
    checkpoints.save(2, 0)
    step_on(engine, average, config, ranks, 2)

    def poll_repeatedly() -> None:
        for _ in range(10_000):
            checkpoints.poll()

    messages["full disk"] = _message(poll_repeatedly)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    messages["after full disk"] = ", ".join(sorted(path.name for path in (folder / "run").iterdir()))

    checkpoints.save(2, 0)
    checkpoints.finish()
    if ranks.is_first:
        # Incomplete, as a crash leaves it: some files, no manifest.
        incomplete = folder / "run" / "step-00000003"
        shutil.copytree(folder / "run" / "step-00000002", incomplete)
        (incomplete / "MANIFEST.json").unlink()
        # And one with a flipped bit.
        damaged = folder / "run" / "step-00000002" / "rank-00001.safetensors"
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
    dist.barrier()
    engine, average, checkpoints = start_run(config, ranks, folder / "run")
    resumed = checkpoints.resume()
    messages["incomplete and damaged"] = f"step {resumed.step}: {'; '.join(resumed.notes)}"

    _, _, checkpoints = start_run(tiny.run_config(zero_stage=2, width=24), ranks, folder / "run")
    messages["another shape"] = _message(checkpoints.resume)
    messages["not allowed"] = _message(lambda: checkpoints.resume(allowed=False))
    return messages


def _message(action: Any) -> str:
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return "no error"


def partly_persistent(*arguments: Any) -> dict[str, Any]:
    """A configuration where, at stage 3, only some parameters stay gathered between steps, as in a large model."""
    config = _ORIGINAL_CONFIG(*arguments)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 100
    return config


_ORIGINAL_CONFIG = engine_module.deepspeed_config


def main() -> None:
    folder, *names = sys.argv[1:]
    setattr(engine_module, "deepspeed_config", partly_persistent)  # noqa: B010 - its type is wider
    with init_distributed(60.0) as ranks:
        for name in names:
            start = time.monotonic()
            result = globals()[name](ranks, Path(folder))
            print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)  # for the log of a run that takes too long
            if ranks.is_first:
                (Path(folder) / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
