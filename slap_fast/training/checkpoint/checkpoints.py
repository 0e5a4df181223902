"""Saving and resuming a run, on all ranks together.

A checkpoint holds slices of float32 state by the names of the parameters, not DeepSpeed's flat tensors: any number of
ranks, ZeRO stage and precision continues from it, and a rank writes and reads only its own part.
"""

from __future__ import annotations

import dataclasses
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
from slap_fast.training.checkpoint import files
from slap_fast.training.checkpoint.continuation import changes, other_model
from slap_fast.training.checkpoint.files import Manifest
from slap_fast.training.checkpoint.slice_files import SliceReader, StateSnapshot, own_share, write_slices
from slap_fast.training.checkpoint.state_slices import adam_steps, create_moments, publish_weights, trained_slices
from slap_fast.training.distributed.process_group import any_rank, together
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.zero import parameter_shapes, precision_of


class CheckpointError(SlapFastError, RuntimeError):
    """A checkpoint that cannot be written, or does not belong to this run."""


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on: steps completed and skipped so far, and what there is to say about it."""

    step: int = 0
    skipped_steps: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Written:
    """What came of writing this rank's part: sizes and hashes by file, or why it failed."""

    digests: dict[str, Any]
    failure: str | None = None


@dataclass(frozen=True)
class _Pending:
    """A save that is not yet a checkpoint: some rank may still be writing."""

    folder: Path
    manifest: Manifest  # but for the files
    written: Future[_Written]


class Checkpoints:
    """The checkpoints of one run. Every method is a collective call.

    With `training.async_checkpoints` a save copies this rank's part of the state to host memory, from where a thread
    writes it. The copy takes 12 bytes for each trained parameter and 4 for each of the teacher, divided by the number
    of ranks, and the memory is kept for the next one. The thread makes no collective call: ranks agree in `poll` and
    `finish` that all of them are done, and only then is there a manifest.

    Args:
        folder: holds one folder a checkpoint.
        config: stored with each checkpoint.
        data: the datasets in words, stored too.
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
        with together(engine.device):
            # Now, while no loader uses the tokenizer.
            self._description = _description(engine.module.student) if dist.get_rank() == 0 else {}
        self._copy = StateSnapshot() if training.async_checkpoints else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._damaged: set[Path] = set()

    def save(self, step: int, skipped_steps: int) -> None:
        """Write a checkpoint; once it is whole, delete those that shall not be kept.

        With `training.async_checkpoints` it becomes whole in a later `poll` or `finish`, which raises what this raises.

        Raises:
            CheckpointError: on every rank, if one could not write its part. Earlier checkpoints are untouched.
        """
        self.finish()
        folder = files.folder_of(self._folder, step)
        if failure := _on_first_rank(lambda: _make_empty(folder)):
            raise CheckpointError(self._no_room(step, failure))
        with together(self._engine.device):
            slices = [*trained_slices(self._engine), *self._average.slices()]
            share = own_share(slices, dist.get_rank(), dist.get_world_size())
            if self._copy is not None:
                share = self._copy.take(share)
        manifest = self._manifest(step, skipped_steps)
        self._pending = _Pending(folder, manifest, self._writer.submit(self._write, folder, share))
        if self._copy is None:
            self.finish()

    def poll(self) -> None:
        """Complete the last save if every rank has written its part, else leave it for later.

        Raises:
            CheckpointError: as `save`.
        """
        if self._pending is not None and not any_rank(not self._pending.written.done(), self._engine.device):
            self.finish()

    def finish(self) -> None:
        """Wait for the last save, and complete it.

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
                files.delete(pending.folder)
            dist.barrier()
            raise CheckpointError(self._no_room(pending.manifest.step, failure))

    def resume(self, *, allowed: bool = True) -> Resumed:
        """Restore model, optimizer and teacher from the newest whole checkpoint; without any, start at step 0.

        Raises:
            CheckpointError: on every rank and before anything is changed: the checkpoint is of another model or
                tokenizer; none is whole any more; or there are checkpoints, and the run is not `allowed` to continue.
            OSError: on a rank that cannot read its part.
            OtherRankFailed: on the others.
        """
        found, notes = self._newest()
        if found is None:
            return Resumed(notes=tuple(notes))
        folder, manifest = found
        if not allowed:
            raise CheckpointError(
                f"training.resume is false, but {self._folder} holds checkpoints up to step {manifest.step}; "
                "choose another training.output, or delete the folder"
            )
        own = self._manifest(manifest.step, manifest.skipped_steps)
        _require_same_model(folder, manifest, own)
        difference = _on_first_rank(lambda: other_model(files.described(folder, manifest), self._description))
        if difference is not None:
            raise CheckpointError(
                f"{folder} is of another model: {difference}. The weights would mean something else: restore the "
                "recipe's model section and data.tokenizer, or choose another training.output to start anew"
            )
        with together(self._engine.device):
            create_moments(self._engine, manifest.adam_steps)
            with SliceReader([files.rank_file(folder, rank) for rank in range(manifest.world_size)]) as reader:
                for part in (*trained_slices(self._engine), *self._average.slices()):
                    reader.read_into(part)
        publish_weights(self._engine)
        self._average.publish()
        notes.append(f"continuing after step {manifest.step} from {folder}")
        if (layout := _layout(manifest)) != _layout(own):
            notes.append(f"saved by {layout}; the same weights, moments and teacher go on with {_layout(own)}")
        notes += changes(manifest.config, own.config, manifest.data, own.data)
        return Resumed(manifest.step, manifest.skipped_steps, tuple(notes))

    def _write(self, folder: Path, share: dict[str, Tensor]) -> _Written:
        """This rank's part, on the disk for good."""
        try:
            path = files.rank_file(folder, dist.get_rank())
            write_slices(path, share)
            for name, content in self._description.items():
                described = files.model_folder(folder) / name
                described.parent.mkdir(parents=True, exist_ok=True)
                replace_file(described, [content])
            written = [path, *(files.model_folder(folder) / name for name in self._description)]
            return _Written({path.relative_to(folder).as_posix(): files.digest(path) for path in written})
        # Whatever it is, the other ranks wait to hear of it.
        except Exception as error:
            return _Written({}, failure=str(error) if isinstance(error, OSError) else repr(error))

    def _complete(self, pending: _Pending, digests: dict[str, Any]) -> None:
        files.write_manifest(pending.folder, dataclasses.replace(pending.manifest, files=digests))
        self._damaged.discard(pending.folder)
        files.prune(self._folder, self._keep, self._keep_every, self._damaged)

    def _newest(self) -> tuple[tuple[Path, Manifest] | None, list[str]]:
        """The newest checkpoint whose files are as its manifest says, and notes on those that were passed over."""
        listed: list[Any] = [[(path, files.read_manifest(path)) for path in files.folders(self._folder)]]
        dist.broadcast_object_list(listed, src=0)
        notes: list[str] = []
        for folder, manifest in listed[0]:
            reason: str | None = manifest
            if isinstance(manifest, Manifest):
                faults: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(faults, files.fault(folder, manifest, dist.get_rank(), dist.get_world_size()))
                reason = next((fault for fault in faults if fault), None)
                if reason is None:
                    return (folder, manifest), notes
            notes.append(f"passed over the checkpoint {folder}: {reason}")
            self._damaged.add(folder)
        if any(manifest != files.UNFINISHED for _, manifest in listed[0]):
            raise CheckpointError(
                f"no checkpoint in {self._folder} is whole: {'; '.join(notes)}. Delete the folder to start at step 0"
            )
        # A save that never finished is nothing to lose: the first one was interrupted.
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

    def _no_room(self, step: int, failure: str) -> str:
        need = _size(self._engine) / 1e9
        existing = next(path for path in (self._folder, *self._folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(existing).free / 1e9
        return (
            f"cannot save the checkpoint of step {step}: {failure}. It needs about {need:.3g} GB in {self._folder}, "
            f"where {free:.3g} GB are free (a quota may allow less). Earlier checkpoints are untouched: make room, and "
            "start the same command again"
        )


def _on_first_rank(action: Callable[[], str | None]) -> str | None:
    """Run `action` on rank 0; what it says, or why it failed, on every rank."""
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            failure = [action()]
        except (OSError, ValueError) as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, src=0)
    return failure[0]


def _make_empty(folder: Path) -> None:
    # What stands under this name is torn: a whole checkpoint of this step would have been resumed from.
    files.delete(folder)
    folder.mkdir(parents=True)


def _description(student: SLAP) -> dict[str, bytes]:
    """The files of a saved model but its weights, `{name: content}`."""
    with tempfile.TemporaryDirectory() as folder:
        student.save_description(folder)
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _require_same_model(folder: Path, saved: Manifest, own: Manifest) -> None:
    for name in own.parameters | saved.parameters:
        there, here = saved.parameters.get(name), own.parameters.get(name)
        if there != here:
            raise CheckpointError(
                f"{folder} is of another model: {name} is {there or 'absent'} there and {here or 'absent'} in "
                "this recipe. Restore the recipe's model section, or choose another training.output to start anew"
            )


def _layout(manifest: Manifest) -> str:
    ranks = "1 rank" if manifest.world_size == 1 else f"{manifest.world_size} ranks"
    return f"{ranks} at zero_stage={manifest.zero_stage} in {manifest.precision}"


def _size(engine: Any) -> int:
    """Bytes of a checkpoint, nearly: float32 masters with two moments, and the teacher's average."""
    return sum(
        getattr(parameter, "ds_numel", parameter.numel()) * (12 if parameter.requires_grad else 4)
        for parameter in engine.module.parameters()
    )
