"""Train a model: `deepspeed slap_fast/train.py recipe=quickstart data.train=FOLDER training.output=FOLDER`.

Works as plain `python slap_fast/train.py ...` too, on one process. Any key of the recipe can be given as
`section.key=value`. The output folder holds config.yaml, log.jsonl, tensorboard/, checkpoints/, best/ if the model is
evaluated as it trains, and, once the run is complete, model/. The same command continues a run that was stopped; with
more steps, also one that is complete.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on the path; modules of this package would shadow libraries there.
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE]
    if find_spec("slap_fast") is None:
        sys.path.insert(0, str(_HERE.parent))
    from slap_fast.runtime.cpu import configure_cpu_environment

    configure_cpu_environment()

import torch

from slap_fast.config.loading import config_from_arguments
from slap_fast.config.recipe import RunConfig
from slap_fast.data.decoding import make_decoder
from slap_fast.data.loading.dropped_clips import DropReport
from slap_fast.data.loading.loader import Loader
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.errors import SlapFastError
from slap_fast.evaluation.in_loop import InLoopEvaluation
from slap_fast.training import schedule
from slap_fast.training.build import build_model, build_tokenizer, complete_model_config, saved_mel_statistics
from slap_fast.training.checkpoint.export import save_student
from slap_fast.training.checkpoint.manager import CheckpointManager
from slap_fast.training.checkpoint.output_folder import finished_steps, locked, set_model_aside
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
from slap_fast.training.metrics.peak_flops import total_peak_flops
from slap_fast.training.metrics.run_log import RunLog
from slap_fast.training.metrics.step_counts import StepCounts, batch_metrics, memory_in_use
from slap_fast.training.metrics.nonfinite import NonFiniteGuard, suspect_clips
from slap_fast.training.metrics.throughput import ThroughputMeter
from slap_fast.training.step import take_step

_FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or say that there is nothing left to train."""
    configure_rank_environment()
    config = config_from_arguments(sys.argv[1:] if arguments is None else arguments)
    output = Path(config.efficiency.training.output)
    if (steps := finished_steps(config)) is not None:
        if os.environ["RANK"] == "0":
            print(f"{output / 'model'} is complete after {steps} steps; choose another training.output to train again")
        return
    with init_distributed(config.efficiency.training.timeout) as ranks, ExitStack() as stack:
        with raise_on_any_rank(ranks.device):
            if ranks.is_first:
                stack.enter_context(locked(output))
        train(config, ranks)


def train(config: RunConfig, ranks: Ranks) -> None:
    """Train on this rank until the schedule, `training.stop_after` or a signal ends it."""
    recipe, training, loading = config.recipe, config.efficiency.training, config.efficiency.loading
    output, steps, seed = Path(training.output), recipe.schedule.steps, recipe.schedule.seed

    with raise_on_any_rank(ranks.device):
        datasets = Mixture.open([(part.folder, part.weight) for part in recipe.data.folders])
        sampler = GlobalBatchSampler(
            datasets,
            batch_size=recipe.schedule.batch_size,
            seed=seed,
            max_duration=recipe.data.max_duration,
            crop_above_max_duration=recipe.data.crop_above_max_duration,
            shuffle_shards=recipe.data.shuffle_shards,
        )
        tokenizer = build_tokenizer(recipe.data, recipe.model)
        used_to = saved_mel_statistics(output / "checkpoints")
        model_config = complete_model_config(recipe.model, datasets, tokenizer, used_to)
        model = build_model(config, model_config, tokenizer)
        evaluation = InLoopEvaluation(config.efficiency.evaluation, output / "best", ranks)
    engine = build_engine(model, config, ranks)
    average = TeacherAverage(engine.module.teacher_pairs())
    checkpoints = CheckpointManager(
        output / "checkpoints", engine, average, config, [str(index) for index in datasets.indexes]
    )
    resumed = checkpoints.resume(allowed=training.resume)
    aside = set_model_aside(output, resumed.step) if ranks.is_first else None

    completed = saved = resumed.step
    last_step = max(completed, min(steps, training.stop_after or steps))
    loader = Loader(
        datasets,
        sampler,
        model_config,
        recipe.augmentation,
        tokenizer,
        make_decoder(
            loading.decoder,
            loading.threads,
            # All of a rank's clips at once lie end to end in memory, and need no copy to be packed.
            max_batch_size=max(1, recipe.schedule.batch_size // ranks.world_size),
            sample_rate=model_config.mel.sample_rate,
            pin_memory=ranks.device.type == "cuda",
        ),
        seed=seed,
        start_step=completed,
        stop_step=last_step,
        rank=ranks.rank,
        world_size=ranks.world_size,
        prefetch=loading.prefetch,
        max_consecutive_failures=loading.max_consecutive_failures,
        pin_memory=ranks.device.type == "cuda",
        report=DropReport(output / "dropped.jsonl", start_step=completed),
    )
    # Not before: until here a signal has nothing to save, and shall end the process at once.
    stop = StopSignal()
    guard = NonFiniteGuard(resumed.skipped_steps)
    throughput = ThroughputMeter(total_peak_flops(ranks.device, precision_of(engine)))
    step_counts = StepCounts(model_config, shared_pass=recipe.objectives.shared_pass)
    with RunLog(output, config, start_step=completed, enabled=ranks.is_first) as log, loader:
        log.say(*resumed.notes, *([aside] if aside else []), *evaluation.resume(completed))
        if used_to and (found := complete_model_config(recipe.model, datasets, tokenizer).mel) != model_config.mel:
            log.say(
                f"log-mel values are normalized as before, by mean {used_to[0]:g} and deviation {used_to[1]:g}; those "
                f"of the data are {found.mean:g} and {found.std:g} now"
            )
        log.say(*(f"{skip.count} clips left out: {skip.reason}" for skip in sampler.skipped))

        def evaluate() -> None:
            ranks.heartbeat.set_activity(f"scoring the model of step {completed}")
            with throughput.paused():
                log.evaluation(completed, evaluation.run(engine, completed))

        # The run may have been stopped between the checkpoint and its scores.
        if 0 < completed < steps and evaluation.due(completed):
            evaluate()
        for step, batch in loader:
            ranks.heartbeat.set_activity(f"in step {step + 1}")
            torch.manual_seed((seed * 1_000_003 + step) * 65_537 + ranks.rank)
            settings = schedule.settings(step, recipe)
            batch = batch.to(ranks.device, non_blocking=True)
            audio_seconds = batch.samples.total / model_config.mel.sample_rate
            logged = (step + 1) % training.log_every == 0 or step + 1 == last_step
            report = take_step(
                engine,
                average,
                batch,
                settings,
                stop=stop.requested,
                audio_seconds=audio_seconds,
                micro_batch_size=training.micro_batch_size,
                detailed=logged,
                counts=step_counts.count(batch, detailed=logged) | {"dropped_clips": len(loader.dropped)},
                maxima={"memory": memory_in_use(ranks.device)} if logged else {},
            )
            completed = step + 1
            throughput.add(recipe.schedule.batch_size, report.audio_seconds, report.counts["flops"])
            if report.nonfinite:
                keys = [datasets.name(clip) for clip in suspect_clips(batch)]
                log.skipped(guard.record_skipped(completed, report.nonfinite, keys))
            else:
                guard.record_applied()
                if logged:
                    wait = {"data_wait_seconds": loader.waited_seconds, "data_wait_share": loader.waited_share()}
                    own = wait | batch_metrics(report.counts, report.maxima)
                    log.step(completed, report, settings, throughput.read() | own, guard.skipped_steps)
            log.advance()
            if report.stop:
                break
            checkpoints.poll()
            if completed % training.save_every == 0:
                ranks.heartbeat.set_activity(f"saving the checkpoint of step {completed}")
                checkpoints.save(completed, guard.skipped_steps)
                saved = completed
            if completed < steps and evaluation.due(completed):
                evaluate()
            ranks.heartbeat.set_activity(f"waiting for the clips of step {completed + 1}")
        if completed > saved:
            ranks.heartbeat.set_activity(f"saving the checkpoint of step {completed}")
            checkpoints.save(completed, guard.skipped_steps)
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


def _describe(error: Exception) -> str:
    """One line for what the user can mend, the traceback for a fault of the program."""
    if isinstance(error, OSError | SlapFastError):
        return f"{type(error).__name__}: {error}\n"
    return traceback.format_exc()


def _is_retryable(error: Exception) -> bool:
    """Not what this package says about its input, nor a full disk: bad keys and losses are the same the next time.

    But the storage of the clips may be back by then.
    """
    if isinstance(error, OSError) and error.errno in _FULL_OR_FORBIDDEN:
        return False
    return error.retryable if isinstance(error, SlapFastError) else True


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.stderr.write(f"rank {os.environ.get('RANK', '0')}: {_describe(error)}")
        sys.stderr.flush()
        report_failure(error, retryable=_is_retryable(error))
        # Not sys.exit: the other ranks wait for this one, and it must not wait for them on its way out.
        os._exit(1)
