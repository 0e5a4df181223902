"""Functions that the multi-rank tests run on every rank: `python -m tests.training.worker FOLDER FUNCTION ...`."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import shutil
import sys
import time
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
# Per ZeRO stage: (micro_batch_size of the 3 clips of a rank, shared_pass, activation checkpointing)
GRADIENTS: tuple[tuple[tuple[int | None, bool, bool], ...], ...] = (
    ((None, False, False), (2, False, False)),
    ((None, False, False), (1, True, True)),
    ((None, False, False), (2, False, False)),
    ((None, False, False), (1, True, True), (2, False, True)),
)
# Stage 3 is where a parameter without a gradient could go wrong; the others differ in what they communicate.
SINGLE_OBJECTIVES = (
    (0, "contrastive"),
    (3, "contrastive"),
    (3, "self_distillation"),
    (1, "caption"),
)
# (precision, stage, micro_batch_size). At stage 1 in float32, only the reduction of gradients differs from stage 2.
# With micro-batches, DeepSpeed uses another optimizer in bf16; at stage 0 the check for infinity is ours.
LIFECYCLES: tuple[tuple[str, int, int | None], ...] = (
    ("fp32", 0, 2),
    ("fp32", 2, None),
    ("fp32", 3, None),
    ("bf16", 0, None),
    ("bf16", 1, None),
    ("bf16", 1, 2),
    ("bf16", 3, None),
)
# test_train.py evaluates at stage 2.
EVALUATED = ("fp32, stage 0, micro-batches", "fp32, stage 3", "bf16, stage 1")


def gradients(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Per ZeRO stage and `GRADIENTS`, the errors of gradients and outputs against one process with the whole batch."""
    seen: dict[str, Any] = {}
    for stage, cases in enumerate(GRADIENTS):
        config = tiny.run_config(zero_stage=stage, clipping=0.0, exchange="ring" if stage == 1 else "gather")
        alone, model = tiny.build(config), tiny.build(config)
        # A learning rate of 0 keeps the parameters equal. A new batch each step would reveal stale gradients.
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        engine = build_engine(model, config, ranks, optimizer)
        for step, (micro_batch_size, shared_pass, checkpointed) in enumerate(cases):
            for module in (alone, engine.module):
                module.objectives = dataclasses.replace(module.objectives, shared_pass=shared_pass)
            if checkpointed:
                checkpoint_activations(engine.module)
            seen[f"stage {stage}, case {step}"] = step_errors(engine, alone, config, ranks, step, micro_batch_size)
    return seen


def single_objectives(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """For each of `SINGLE_OBJECTIVES`: errors of gradients, without and with micro-batches, against a model with all
    parts and the same weights on one process; numbers of elements; and bytes that a step communicates."""
    seen: dict[str, Any] = {}
    for stage, objective in SINGLE_OBJECTIVES:
        config = tiny.run_config(zero_stage=stage, clipping=0.0)
        alone = tiny.build(config)
        weights: dict[str, Any] = {f"{name}_weight": float(name == objective) for name in OBJECTIVES}
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
            "trained with all objectives": sum(p.numel() for p in alone.parameters() if p.requires_grad),
            "states": sum(state["exp_avg"].numel() for state in states),
            "averaged": sum(part.value.numel() for part in average.slices()),
            "communicated": dict(communication.bytes),
        }
    return seen


def step_errors(
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


def lifecycle_name(precision: str, stage: int, micro_batch_size: int | None) -> str:
    return f"{precision}, stage {stage}{', micro-batches' if micro_batch_size else ''}"


def lifecycle(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Each of `LIFECYCLES`: train, save half-way, resume in a new engine, and skip steps with NaN or infinity."""
    seen = {}
    for precision, stage, micro_batch_size in LIFECYCLES:
        config = tiny.run_config(
            zero_stage=stage,
            precision=precision,
            micro_batch_size=micro_batch_size,
            async_checkpoints=micro_batch_size is None,
        )
        name = lifecycle_name(precision, stage, micro_batch_size)
        seen[name] = _train_and_resume(config, ranks, folder / name, folder / "classes" if name in EVALUATED else None)
    return seen


def _train_and_resume(config: RunConfig, ranks: Ranks, folder: Path, classes: Path | None) -> dict[str, Any]:
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
    scores = {} if classes is None else _evaluate(engine, classes, folder / "best", ranks)
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
        "evaluation": scores,
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


def _evaluate(engine: Any, classes: Path, best: Path, ranks: Ranks) -> dict[str, Any]:
    """Scores, with and without a tokenizer, and whether the first saved the student."""
    student = engine.module.student
    student.tokenizer = tiny.WordTokenizer()
    evaluation = InLoopEvaluation(EvaluationConfig(zero_shot=str(classes), metric="zero_shot"), best, ranks)
    random_state, weights = torch.get_rng_state(), full_weights(engine, student)
    evaluated = [evaluation.run(engine, 1)]
    student.tokenizer = None
    evaluated.append(evaluation.run(engine, 1))
    seen: dict[str, Any] = {
        "scores": [each.scores for each in evaluated],
        "notes": [each.notes for each in evaluated],
        "random state kept": torch.equal(random_state, torch.get_rng_state()),
    }
    if ranks.is_first:
        saved = SLAP.from_pretrained(best).state_dict()
        seen["best"] = all(torch.equal(saved[name], weights[name]) for name in weights)
    return seen


FROZEN = ("audio_encoder", "text_encoder", "logit_scale")
# (precision, stage, micro-batch size, offloading). At stage 2 in float32, frozen parameters are held as at stage 0, and
# the optimizer is that of stage 1.
FROZEN_RUNS: list[tuple[str, int, int | None, bool]]
FROZEN_RUNS = [("fp32", 0, None, False), ("fp32", 3, None, False), ("bf16", 1, 2, False), ("bf16", 3, 2, True)]


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
    """Per stage, the size of each parameter's first update relative to that with one learning rate, at stage 1."""

    def update_sizes(stage: int, **optimizer: Any) -> dict[str, float]:
        config = tiny.changed(tiny.run_config(zero_stage=stage), optimizer=optimizer)
        engine, average, _ = start_run(config, ranks, folder)
        before = full_weights(engine, engine.module.student)
        step_on(engine, average, config, ranks, 0)
        after = full_weights(engine, engine.module.student)
        return {name: float((after[name] - before[name]).norm()) for name in before}

    alike = update_sizes(1)
    rates = RateMultipliersConfig(text_encoder=0.1, caption_decoder=4.0)
    updates: dict[str, dict[str, float]] = {}
    for stage in (1, 3):
        sizes = update_sizes(stage, rate_multipliers=rates, layer_decay=0.5)
        updates[f"stage {stage}"] = {name: sizes[name] / size for name, size in alike.items() if size}
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
    checkpoints = CheckpointManager(folder / "run", engine, average, config)
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
