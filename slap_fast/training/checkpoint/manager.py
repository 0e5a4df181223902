"""Checkpoint manager: saves and resumes a run on all ranks.

A checkpoint holds slices of float32 state under parameter names, not DeepSpeed's flat tensors: a run resumes with any
number of ranks, ZeRO stage and precision, and each rank writes and reads only its own part.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from slap_fast.config.loading import to_yaml
from slap_fast.config.recipe import RunConfig
from slap_fast.errors import SlapFastError
from slap_fast.models.slap import SLAP
from slap_fast.runtime.durable_files import replace_file
from slap_fast.training.checkpoint.compatibility import (
    freeze_difference,
    model_difference,
    objective_difference,
    resume_changes,
)
from slap_fast.training.checkpoint.folder import (
    UNFINISHED,
    Manifest,
    checkpoint_folders,
    delete_checkpoint,
    file_digest,
    find_damage,
    model_folder,
    prune_checkpoints,
    rank_file,
    read_manifest,
    read_model_files,
    step_folder,
    write_manifest,
)
from slap_fast.training.checkpoint.slice_files import SliceReader, StateSnapshot, rank_share, write_slices
from slap_fast.training.checkpoint.state_slices import Slice, adam_steps, create_moments, trained_slices
from slap_fast.training.distributed.process_group import any_rank, raise_on_any_rank
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import precision_of
from slap_fast.training.frozen import frozen_slices, publish_frozen
from slap_fast.training.zero import parameter_shapes, publish_masters


class CheckpointError(SlapFastError, RuntimeError):
    """A checkpoint cannot be written, or does not belong to this run."""


@dataclass(frozen=True)
class ResumePoint:
    """State of a run that resumes: completed and skipped steps, and notes for the log."""

    step: int = 0
    skipped_steps: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _WriteResult:
    """Result of writing this rank's part: sizes and hashes by file, or the reason of the failure."""

    digests: dict[str, Any]
    failure: str | None = None


@dataclass(frozen=True)
class _Pending:
    """A save in progress: some ranks may still be writing."""

    folder: Path
    manifest: Manifest  # without the files
    written: Future[_WriteResult]


class CheckpointManager:
    """The checkpoints of one run. Every method is a collective call.

    With `training.async_checkpoints` a save copies this rank's part of the state to host memory, and a thread writes
    it. The copy takes 12 bytes for each trained parameter and 4 for each teacher parameter, divided by the number of
    ranks; the memory is reused by the next save. The thread makes no collective calls: the ranks agree in `poll` and
    `finish` that all of them are done, and then rank 0 writes the manifest.

    Args:
        folder: parent of the checkpoint folders.
        config: stored with each checkpoint.
        data: descriptions of the datasets, stored with each checkpoint.
    """

    def __init__(
        self, folder: Path, engine: Any, average: TeacherAverage, config: RunConfig, data: Sequence[str] = ()
    ) -> None:
        training = config.efficiency.training
        self._folder = folder
        self._engine = engine
        self._average = average
        self._config, self._data = to_yaml(config), list(data)
        self._keep, self._keep_every = training.keep_checkpoints, training.keep_every
        with raise_on_any_rank(engine.device):
            # In advance: later the loader's threads use the tokenizer.
            self._model_files = _model_files(engine.module.student) if dist.get_rank() == 0 else {}
        self._copy = StateSnapshot() if training.async_checkpoints else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._damaged: set[Path] = set()

    def save(self, step: int, skipped_steps: int) -> None:
        """Write a checkpoint, then delete those that exceed `training.keep_checkpoints`.

        With `training.async_checkpoints` a later `poll` or `finish` completes the checkpoint, or raises this error.

        Raises:
            CheckpointError: on every rank, if any rank could not write its part. Earlier checkpoints are unchanged.
        """
        self.finish()
        folder = step_folder(self._folder, step)
        if failure := _on_first_rank(lambda: _make_empty(folder)):
            raise CheckpointError(self._save_error(step, failure))
        with raise_on_any_rank(self._engine.device):
            share = rank_share(self._slices(), dist.get_rank(), dist.get_world_size())
            if self._copy is not None:
                share = self._copy.take(share)
        manifest = self._manifest(step, skipped_steps)
        self._pending = _Pending(folder, manifest, self._writer.submit(self._write, folder, share))
        if self._copy is None:
            self.finish()

    def poll(self) -> None:
        """Complete the last save if every rank has written its part.

        Raises:
            CheckpointError: as `save`.
        """
        if self._pending is not None and not any_rank(not self._pending.written.done(), self._engine.device):
            self.finish()

    def finish(self) -> None:
        """Wait for the last save and complete it.

        Raises:
            CheckpointError: as `save`.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, pending.written.result())
        failure = next((part.failure for part in gathered if part.failure), None)
        if failure is None:
            digests = {name: value for part in gathered for name, value in part.digests.items()}
            failure = _on_first_rank(lambda: self._complete(pending, digests))
        if failure is not None:
            if dist.get_rank() == 0:
                delete_checkpoint(pending.folder)
            dist.barrier()
            raise CheckpointError(self._save_error(pending.manifest.step, failure))

    def resume(self, *, allowed: bool = True) -> ResumePoint:
        """Restore model, optimizer and teacher from the newest undamaged checkpoint; without any, start at step 0.

        Raises:
            CheckpointError: on every rank, before anything is changed: the checkpoint is of another model or tokenizer;
                all checkpoints are damaged; or there are checkpoints, and `allowed` is False.
            OSError: on a rank that cannot read its part.
            OtherRankFailedError: on the other ranks.
        """
        found, notes = self._newest()
        if found is None:
            return ResumePoint(notes=tuple(notes))
        folder, manifest = found
        if not allowed:
            raise CheckpointError(
                f"training.resume is false, but {self._folder} holds checkpoints up to step {manifest.step}; "
                "choose another training.output, or delete the folder"
            )
        own = self._manifest(manifest.step, manifest.skipped_steps)
        if difference := freeze_difference(manifest.config, own.config):
            raise CheckpointError(
                f"{folder}: {difference}. A run keeps its frozen parts: restore model.freeze, or start a new run from "
                f"these weights by another training.output and model.init_from={folder}"
            )
        _require_same_model(folder, manifest, own)
        difference = _on_first_rank(lambda: model_difference(read_model_files(folder, manifest), self._model_files))
        if difference is not None:
            raise CheckpointError(
                f"{folder} is of another model: {difference}. Its weights were trained for that one: restore the "
                "recipe's model section and data.tokenizer, or choose another training.output to start a new run"
            )
        with raise_on_any_rank(self._engine.device):
            create_moments(self._engine, manifest.adam_steps)
            with SliceReader([rank_file(folder, rank) for rank in range(manifest.world_size)]) as reader:
                for part in self._slices():
                    reader.read_into(part)
        publish_masters(self._engine)
        publish_frozen(self._engine)
        self._average.publish()
        notes.append(f"continuing after step {manifest.step} from {folder}")
        if (layout := _layout(manifest)) != _layout(own):
            notes.append(f"saved by {layout}; resumed on {_layout(own)} with the same weights, moments and teacher")
        notes += resume_changes(manifest.config, own.config, manifest.data, own.data)
        return ResumePoint(manifest.step, manifest.skipped_steps, tuple(notes))

    def _slices(self) -> list[Slice]:
        """This rank's part of the state."""
        return [*trained_slices(self._engine), *frozen_slices(self._engine.module), *self._average.slices()]

    def _write(self, folder: Path, share: dict[str, Tensor]) -> _WriteResult:
        """Write this rank's part durably."""
        try:
            written = [rank_file(folder, dist.get_rank())]
            write_slices(written[0], share)
            for name, content in self._model_files.items():
                path = model_folder(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, [content])
                written.append(path)
            return _WriteResult({path.relative_to(folder).as_posix(): file_digest(path) for path in written})
        # Any error: the other ranks wait for the result.
        except Exception as error:
            return _WriteResult({}, failure=str(error) if isinstance(error, OSError) else repr(error))

    def _complete(self, pending: _Pending, digests: dict[str, Any]) -> None:
        write_manifest(pending.folder, dataclasses.replace(pending.manifest, files=digests))
        self._damaged.discard(pending.folder)
        prune_checkpoints(self._folder, self._keep, self._keep_every, self._damaged)

    def _newest(self) -> tuple[tuple[Path, Manifest] | None, list[str]]:
        """The newest undamaged checkpoint, and notes on those that were passed over."""
        listed: list[Any] = [[(path, read_manifest(path)) for path in checkpoint_folders(self._folder)]]
        dist.broadcast_object_list(listed, src=0)
        notes: list[str] = []
        for folder, manifest in listed[0]:
            reason: str | None = manifest
            if isinstance(manifest, Manifest):
                damages: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(damages, find_damage(folder, manifest, dist.get_rank(), dist.get_world_size()))
                reason = next((damage for damage in damages if damage), None)
                if reason is None:
                    return (folder, manifest), notes
            notes.append(f"passed over the checkpoint {folder}: {reason}")
            self._damaged.add(folder)
        if any(manifest != UNFINISHED for _, manifest in listed[0]):
            raise CheckpointError(
                f"all checkpoints in {self._folder} are damaged: {'; '.join(notes)}. Delete the folder to start "
                "at step 0"
            )
        # Only unfinished saves: the run was interrupted in its first save, so nothing is lost.
        return None, notes

    def _manifest(self, step: int, skipped_steps: int) -> Manifest:
        return Manifest(
            step=step,
            skipped_steps=skipped_steps,
            adam_steps=adam_steps(self._engine),
            world_size=dist.get_world_size(),
            zero_stage=self._engine.zero_optimization_stage(),
            precision=precision_of(self._engine),
            parameters=parameter_shapes(self._engine.module),
            files={},
            config=self._config,
            data=self._data,
        )

    def _save_error(self, step: int, failure: str) -> str:
        need = _size(self._engine) / 1e9
        existing = next(path for path in (self._folder, *self._folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free / 1e9
        return (
            f"cannot save the checkpoint of step {step}: {failure}. It needs about {need:.3g} GB in {self._folder}, "
            f"where {free:.3g} GB are free (a quota may allow less). Earlier checkpoints are unchanged: free some "
            "space and run the same command again"
        )


def _on_first_rank(action: Callable[[], str | None]) -> str | None:
    """Run `action` on rank 0; its result, or the message of its error, on every rank."""
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            failure = [action()]
        except (OSError, ValueError) as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, src=0)
    return failure[0]


def _make_empty(folder: Path) -> None:
    # A folder of this name is incomplete: the run would have resumed from a complete checkpoint of this step.
    delete_checkpoint(folder)
    folder.mkdir(parents=True)


def _model_files(student: SLAP) -> dict[str, bytes]:
    """Content of the files of a saved model without its weights, by name."""
    with tempfile.TemporaryDirectory() as folder:
        student.save_config_and_tokenizer(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _require_same_model(folder: Path, saved: Manifest, own: Manifest) -> None:
    if difference := objective_difference(saved.parameters, own.parameters):
        raise CheckpointError(
            f"{folder} is of another model: {difference}. Restore the weight, or choose another training.output to "
            "start a new run"
        )
    for name in own.parameters | saved.parameters:
        there, here = saved.parameters.get(name), own.parameters.get(name)
        if there != here:
            raise CheckpointError(
                f"{folder} is of another model: {name} is {there or 'absent'} in the checkpoint and {here or 'absent'} "
                "in this recipe. Restore the model section, or choose another training.output to start a new run"
            )


def _layout(manifest: Manifest) -> str:
    ranks = "1 rank" if manifest.world_size == 1 else f"{manifest.world_size} ranks"
    return f"{ranks} at zero_stage={manifest.zero_stage} in {manifest.precision}"


def _size(engine: Any) -> int:
    """Approximate bytes of a checkpoint: float32 masters with two moments, and the EMA teacher."""
    shapes = parameter_shapes(engine.module)
    return sum(
        math.prod(shapes[name]) * (12 if parameter.requires_grad else 4)
        for name, parameter in engine.module.named_parameters()
    )
