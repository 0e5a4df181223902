"""Runs in phases, each with its own number of ranks: `python -m tests.training.phases FOLDER NAME`.

Each rank is forked from this process, which the fork server has started.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slap_fast import train as train_script
from slap_fast.config.recipe import RunConfig
from slap_fast.training import engine as engine_module
from slap_fast.training.checkpoint import manager as manager_module
from slap_fast.training.checkpoint import slice_files
from slap_fast.training.checkpoint.export import export_checkpoint, save_student
from slap_fast.training.checkpoint.folder import Manifest, rank_file, read_manifest, step_folder
from slap_fast.training.checkpoint.manager import CheckpointManager
from slap_fast.training.checkpoint.slice_files import SliceReader
from slap_fast.training.distributed.process_group import Ranks, init_distributed
from tests.training import tiny
from tests.training.ranks import free_port
from tests.training.worker import partly_persistent, start_run, step_on

# The layouts of a run, one per phase, as (ranks, ZeRO stage, precision). Two ranks save each stage; one rank or three,
# between which slices are uneven, read each stage.
CHAINS: dict[str, Sequence[tuple[int, int, str]]] = {
    "stages 3, 0, 2": [(2, 3, "fp32"), (1, 0, "fp32"), (3, 2, "fp32")],
    "stages 1, 3, 0": [(2, 1, "fp32"), (1, 3, "fp32"), (3, 0, "fp32")],
    "bf16 to fp32": [(2, 0, "bf16"), (1, 2, "fp32"), (3, 1, "fp32")],
    "fp32 to bf16": [(2, 2, "fp32"), (1, 1, "bf16"), (3, 3, "bf16")],
}
WORLD_SIZES = (2, 1, 3)
STEPS = 4
# Steps completed when the layout changes.
CHANGES = (2, 3, STEPS)

# (ranks, action, files: once all exist, the ranks are killed)
Phase = tuple[int, Callable[[], None], Sequence[Path]]


def run_phase(world_size: int, action: Callable[[], None], kill_after: Sequence[Path] = ()) -> None:
    """Run `action` on every rank until it returns; or until the files `kill_after` exist, and then kill all ranks."""
    port = str(free_port())
    children = []
    gc.collect()
    for rank in range(world_size):
        if (child := os.fork()) == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            try:
                action()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    while not all(path.exists() for path in kill_after):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            sys.exit("a rank ended before it was killed")
        time.sleep(0.01)
    for child in children if kill_after else ():
        os.kill(child, signal.SIGKILL)
    expected = -signal.SIGKILL if kill_after else 0
    for _ in children:
        _, status = os.wait()
        if os.waitstatus_to_exitcode(status) != expected:
            # The other ranks would wait for the failed one; they are killed with this process group.
            sys.exit(f"a rank ended with {os.waitstatus_to_exitcode(status)} instead of {expected}")


def in_group(action: Callable[..., None], *arguments: Any) -> None:
    with init_distributed(60.0) as ranks:
        action(ranks, *arguments)


def chains(folder: Path) -> list[Phase]:
    """Each chain of layouts, and a run that keeps its layout."""
    phases: list[Phase] = [(1, partial(in_group, _straight_run, folder), ())]
    for phase in range(len(CHANGES)):
        phases.append((WORLD_SIZES[phase], partial(in_group, _all_chains, folder, phase), ()))
    return phases


def _straight_run(ranks: Ranks, folder: Path) -> None:
    config = tiny.run_config()
    engine, average, _ = start_run(config, ranks, folder / "straight")
    losses = [step_on(engine, average, config, ranks, step).values["loss"] for step in range(STEPS)]
    (folder / "straight.json").write_text(json.dumps(losses))


def _all_chains(ranks: Ranks, folder: Path, phase: int) -> None:
    for name, layouts in CHAINS.items():
        _, stage, precision = layouts[phase]
        config = tiny.run_config(zero_stage=stage, precision=precision)
        seen = _go_on(ranks, config, folder / name, phase)
        if ranks.is_first:
            (folder / f"{name}-{phase}.json").write_text(json.dumps(seen))


def _go_on(ranks: Ranks, config: RunConfig, folder: Path, phase: int) -> dict[str, Any]:
    """Resume, save to a second folder, train the steps of the phase, save, and export a model in two ways."""
    engine, average, checkpoints = start_run(config, ranks, folder / "run", seed=phase)
    resumed = checkpoints.resume()
    seen: dict[str, Any] = {"resumed": [resumed.step, resumed.skipped_steps], "notes": resumed.notes}
    if phase:
        again = CheckpointManager(folder / f"again-{phase}", engine, average, config)
        again.save(resumed.step, resumed.skipped_steps)
        again.finish()
        if ranks.is_first:
            first, second = (folder / sub for sub in ("run", f"again-{phase}"))
            seen["differences"] = differences(*(step_folder(part, resumed.step) for part in (first, second)))
    steps = range(resumed.step, CHANGES[phase])
    seen["losses"] = [step_on(engine, average, config, ranks, step).values["loss"] for step in steps]
    checkpoints.save(CHANGES[phase], skipped_steps=phase)
    checkpoints.finish()
    if phase == 0:
        save_student(engine, folder / "model")
        if ranks.is_first:
            export_checkpoint(step_folder(folder / "run", CHANGES[phase]), folder / "exported")
    return seen


def differences(first: Path, second: Path) -> list[str]:
    """State in which two checkpoints differ in any bit, independent of their layouts."""
    manifests = [read_manifest(folder) for folder in (first, second)]
    one, other = (manifest for manifest in manifests if isinstance(manifest, Manifest))
    assert one.parameters == other.parameters
    found = [] if one.adam_steps == other.adam_steps > 0 else [f"steps {one.adam_steps}, {other.adam_steps}"]
    readers = [
        SliceReader([rank_file(folder, rank) for rank in range(manifest.world_size)])
        for folder, manifest in ((first, one), (second, other))
    ]
    for name, shape in one.parameters.items():
        for kind in ("average",) if name.startswith("teacher") else ("weight", "exp_avg", "exp_avg_sq"):
            values = [reader.whole(kind, name, shape) for reader in readers]
            if not torch.equal(*values):
                found.append(f"{kind} of {name}")
    return found


def killed_while_saving(folder: Path) -> list[Phase]:
    """A run killed during training while a checkpoint is half written, and the run that continues it."""
    marks = [folder / f"{mark}-{rank}" for mark in ("half", "trained") for rank in range(2)]
    return [
        (2, partial(in_group, _train_while_writing, folder), marks),
        (2, partial(in_group, _after_the_kill, folder), ()),
    ]


def _config() -> RunConfig:
    return tiny.run_config(zero_stage=1)


def _train_while_writing(ranks: Ranks, folder: Path) -> None:
    config = _config()
    engine, average, checkpoints = start_run(config, ranks, folder / "run")
    released = threading.Event()

    def write_late(path: Path, share: dict[str, torch.Tensor]) -> None:
        released.wait()
        slice_files.write_slices(path, share)

    setattr(manager_module, "write_slices", write_late)  # noqa: B010 - mypy allows no assignment
    losses = [step_on(engine, average, config, ranks, 0).values]
    checkpoints.save(1, 0)
    for step in (1, 2):
        losses.append(step_on(engine, average, config, ranks, step).values)
        checkpoints.poll()
    assert isinstance(read_manifest(step_folder(folder / "run", 1)), str)
    released.set()
    checkpoints.finish()
    if ranks.is_first:
        (folder / "losses.json").write_text(json.dumps(losses))

    def write_half(path: Path, share: dict[str, torch.Tensor]) -> None:
        slice_files.write_slices(path, share)
        os.truncate(path, path.stat().st_size // 2)
        (folder / f"half-{ranks.rank}").touch()
        threading.Event().wait()

    setattr(manager_module, "write_slices", write_half)  # noqa: B010
    checkpoints.save(3, 0)
    step_on(engine, average, config, ranks, 3)
    checkpoints.poll()
    (folder / f"trained-{ranks.rank}").touch()
    signal.pause()


def _after_the_kill(ranks: Ranks, folder: Path) -> None:
    config = _config()
    engine, average, checkpoints = start_run(config, ranks, folder / "run", seed=1)
    resumed = checkpoints.resume()
    losses = [step_on(engine, average, config, ranks, step).values for step in (1, 2)]
    if ranks.is_first:
        seen = {"step": resumed.step, "notes": resumed.notes, "losses": losses}
        (folder / "after.json").write_text(json.dumps(seen))


def trainings(folder: Path) -> list[Phase]:
    """Runs of the training script, from `trainings.json` as `[ranks, arguments]`; each records its clips."""
    runs = json.loads((folder / "trainings.json").read_text())
    return [
        (world_size, partial(_recorded_training, folder / f"clips-{run}", arguments), ())
        for run, (world_size, arguments) in enumerate(runs)
    ]


def _recorded_training(folder: Path, arguments: list[str]) -> None:
    take_step, clips = train_script.take_step, []

    def recorded(engine: Any, average: Any, batch: Any, *others: Any, **named: Any) -> Any:
        clips.append(batch.clip_ids.tolist())
        return take_step(engine, average, batch, *others, **named)

    setattr(train_script, "take_step", recorded)  # noqa: B010
    train_script.main(arguments)
    folder.mkdir(exist_ok=True)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(clips))


def continuations(folder: Path) -> list[Phase]:
    """Runs of the training script on one rank, given in `continuations.json`; the output of each goes to a file."""
    runs = json.loads((folder / "continuations.json").read_text())
    return [
        (1, partial(_training_with_output, folder / f"output-{run}.txt", arguments), ())
        for run, arguments in enumerate(runs)
    ]


def _training_with_output(path: Path, arguments: list[str]) -> None:
    with path.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            train_script.main(arguments)
        except (ValueError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}")
        sys.stdout.flush()


PHASES = {
    "chains": chains,
    "killed_while_saving": killed_while_saving,
    "trainings": trainings,
    "continuations": continuations,
}


def main() -> None:
    folder, *names = sys.argv[1:]
    setattr(engine_module, "deepspeed_config", partly_persistent)  # noqa: B010
    for name in names:
        for phase in PHASES[name](Path(folder) / name):
            run_phase(*phase)


if __name__ == "__main__":
    main()
