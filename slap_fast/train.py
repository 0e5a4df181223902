"""Train a model: `deepspeed slap_fast/train.py recipe=quickstart data.train=FOLDER training.output=FOLDER`.

Plain `python slap_fast/train.py ...` trains on one process. Any key of the recipe can be set as `section.key=value`.
The output folder gets config.yaml, log.jsonl, tensorboard/ (see logging.tracker), checkpoints/, best/ (if the model is
evaluated during training), and model/ when the run is complete. The same command continues a run that was stopped, and
with more schedule.steps also one that is complete.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's own folder first on the path; modules of this package would shadow libraries there.
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
    if find_spec("slap_fast") is None:
        sys.path.insert(0, str(_HERE.parent))
    from slap_fast.runtime.cpu import configure_cpu_environment

    configure_cpu_environment()

import torch

from slap_fast.config.loading import read_arguments
from slap_fast.config.recipe import RunConfig
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.evaluation.in_loop import InLoopEvaluation
from slap_fast.training import build, failure, schedule
from slap_fast.training.checkpoint.export import save_student
from slap_fast.training.checkpoint.manager import CheckpointManager
from slap_fast.training.checkpoint.output_folder import finished_steps, lock_output_folder, set_model_aside
from slap_fast.training.distributed.launcher import report_failure
from slap_fast.training.distributed.process_group import (
    Ranks,
    StopSignal,
    all_reduce_count,
    init_distributed,
    raise_on_any_rank,
)
from slap_fast.training.distributed.rank_environment import configure_rank_environment
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import build_engine, precision_of
from slap_fast.training.initial_weights import (
    complete_config,
    files_digest,
    require_same_files,
    source_of,
    starting_notes,
)
from slap_fast.training.metrics.nonfinite import NonFiniteGuard, suspect_clips
from slap_fast.training.metrics.peak_flops import total_peak_flops
from slap_fast.training.metrics.run_log import RunLog
from slap_fast.training.metrics.step_counts import StepCounts, batch_metrics, memory_in_use
from slap_fast.training.metrics.throughput import ThroughputMeter
from slap_fast.training.metrics.trackers import require_trackers
from slap_fast.training.parameter_groups import part_multipliers
from slap_fast.training.step import take_step


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or report that there is nothing left to train."""
    configure_rank_environment()
    config = complete_config(read_arguments(sys.argv[1:] if arguments is None else arguments))
    output = Path(config.efficiency.training.output)
    if (steps := finished_steps(config)) is not None:
        if os.environ["RANK"] == "0":
            print(f"{output / 'model'} is complete after {steps} steps; choose another training.output to train again")
        return
    with init_distributed(config.efficiency.training.timeout) as ranks, ExitStack() as stack:
        with raise_on_any_rank(ranks.device):
            if ranks.is_first:
                stack.enter_context(lock_output_folder(output))
        train(config, ranks)


def train(config: RunConfig, ranks: Ranks) -> None:
    """Train on this rank until the end of the schedule, `training.stop_after` or a signal."""
    recipe, training = config.recipe, config.efficiency.training
    output, steps, batch_size = Path(training.output), recipe.schedule.steps, recipe.schedule.batch_size

    # Everything that can fail on one rank alone comes before the engine, whose construction is a collective call.
    with raise_on_any_rank(ranks.device):
        if ranks.is_first:
            require_trackers(config.efficiency.logging)
        datasets = Mixture.open([(part.folder, part.weight) for part in recipe.data.folders])
        sampler = build.build_sampler(recipe, datasets)
        source = source_of(config)
        source_digest = files_digest(source) if ranks.world_size > 1 else 0
        tokenizer = build.build_tokenizer(recipe.data, recipe.model, source)
        mel_statistics = build.saved_mel_statistics(output / "checkpoints")
        model_config = build.complete_model_config(recipe.model, datasets, tokenizer, mel_statistics, source)
        mel_notes = build.mel_statistics_notes(recipe.model, model_config, datasets)
        model = build.build_model(config, model_config, tokenizer, source)
        start_notes = starting_notes(model, source, recipe)
        multipliers = part_multipliers(model, recipe.optimizer)
        evaluation = InLoopEvaluation(config.efficiency.evaluation, output / "best", ranks)
    require_same_files(source, source_digest, ranks.device)
    engine = build_engine(model, config, ranks)
    average = TeacherAverage(engine.module.teacher_pairs())
    checkpoints = CheckpointManager(
        output / "checkpoints", engine, average, config, [str(index) for index in datasets.indexes]
    )
    resumed = checkpoints.resume(allowed=training.resume)
    aside = set_model_aside(output, resumed.step) if ranks.is_first else None

    completed = saved = resumed.step
    last_step = max(completed, min(steps, training.stop_after or steps))
    remaining = range(completed, last_step)
    loader = build.build_loader(config, datasets, sampler, model_config, tokenizer, ranks, remaining)
    # Not earlier: until here there is nothing to save, and a signal ends the process at once.
    stop = StopSignal()
    guard = NonFiniteGuard(resumed.skipped_steps)
    throughput = ThroughputMeter(total_peak_flops(ranks.device, precision_of(engine)))
    step_counts = StepCounts(model_config, recipe.objectives, recipe.model.freeze)

    def evaluate() -> None:
        ranks.heartbeat.set_activity(f"scoring the model of step {completed}")
        with throughput.paused():
            log.evaluation(completed, evaluation.run(engine, completed))

    def save_checkpoint() -> int:
        ranks.heartbeat.set_activity(f"saving the checkpoint of step {completed}")
        checkpoints.save(completed, guard.skipped_steps)
        return completed

    with RunLog(output, config, start_step=completed, enabled=ranks.is_first) as log, loader:
        log.say(*start_notes, *resumed.notes, *([aside] if aside else []), *evaluation.resume(completed), *mel_notes)
        log.say(*build.objective_notes(recipe.objectives))
        log.say(*(f"{skip.count} clips left out: {skip.reason}" for skip in sampler.skipped))
        # The run may have been stopped between the checkpoint and its scores.
        if 0 < completed < steps and evaluation.due(completed):
            evaluate()
        for step, batch in loader:
            ranks.heartbeat.set_activity(f"in step {step + 1}")
            completed = step + 1
            logged = completed % training.log_every == 0 or completed == last_step
            torch.manual_seed((recipe.schedule.seed * 1_000_003 + step) * 65_537 + ranks.rank)
            settings = schedule.settings(step, recipe)
            batch = batch.to(ranks.device, non_blocking=True)
            metrics = take_step(
                engine,
                average,
                batch,
                settings,
                stop=stop.requested,
                audio_seconds=batch.samples.total / model_config.mel.sample_rate,
                micro_batch_size=training.micro_batch_size,
                detailed=logged,
                counts=step_counts.count(batch, detailed=logged) | {"dropped_clips": len(loader.dropped)},
                maxima={"memory": memory_in_use(ranks.device)} if logged else {},
            )
            throughput.add(batch_size, metrics.audio_seconds, metrics.counts["flops"])
            if metrics.nonfinite:
                suspects = [datasets.name(clip) for clip in suspect_clips(batch)]
                log.skipped(guard.record_skipped(completed, metrics.nonfinite, suspects))
            else:
                guard.record_applied()
                if logged:
                    wait = {"data_wait_seconds": loader.waited_seconds, "data_wait_share": loader.waited_share()}
                    measured = throughput.read() | wait | batch_metrics(metrics.counts, metrics.maxima)
                    measured |= {f"learning_rate/{part}": settings.learning_rate * x for part, x in multipliers.items()}
                    log.step(completed, metrics, settings, measured, guard.skipped_steps)
            log.advance()
            if metrics.stop:
                break
            checkpoints.poll()
            if completed % training.save_every == 0:
                saved = save_checkpoint()
            if completed < steps and evaluation.due(completed):
                evaluate()
            ranks.heartbeat.set_activity(f"waiting for the clips of step {completed + 1}")
        if completed > saved:
            save_checkpoint()
        checkpoints.finish()
        if completed == steps and evaluation.enabled:
            evaluate()
        if dropped := all_reduce_count(len(loader.dropped), ranks.device):
            log.say(f"{dropped} unusable clips were replaced by others; {output}/dropped.jsonl names each")
        if completed < steps:
            log.say(f"stopped after step {completed} of {steps}, saved; the same command continues")
            return
    ranks.heartbeat.set_activity("saving the model")
    save_student(engine, output / "model")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.stderr.write(f"rank {os.environ.get('RANK', '0')}: {failure.describe(error)}")
        sys.stderr.flush()
        report_failure(error, retryable=failure.is_retryable(error))
        # Not sys.exit: the interpreter's shutdown would wait for the other ranks, which wait for this one.
        os._exit(1)
