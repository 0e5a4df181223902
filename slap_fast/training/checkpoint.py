"""Saving and resuming a run, on all ranks together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slap_fast.training import checkpoint_files as files
from slap_fast.training.checkpoint_files import Manifest
from slap_fast.training.config_io import to_yaml
from slap_fast.training.ema import TeacherAverage
from slap_fast.training.engine import parameter_shapes, precision_of
from slap_fast.training.recipe import RunConfig


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or does not belong to this run."""


class GuardedWriter:
    """DeepSpeed's checkpoint engine, but for raising: a rank that leaves early would keep the others waiting."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.written: list[Path] = []
        self.failure: str | None = None

    def save(self, state_dict: Any, path: str | Path) -> None:
        if self.failure is None:
            try:
                self._inner.save(state_dict, str(path))
                self.written.append(Path(path))
            # torch.save reports a full disk as either.
            except (OSError, RuntimeError) as error:
                self.failure = f"{path}: {error}"

    def digests(self, folder: Path) -> dict[str, Any]:
        """`{name in folder: size and hash}` of what was written, now on the disk for good."""
        try:
            return {} if self.failure else {str(path.relative_to(folder)): files.digest(path) for path in self.written}
        except OSError as error:
            self.failure = str(error)
            return {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            self._inner.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = self.failure or f"{path}: {error}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on: steps completed and skipped so far, and what there is to say about it."""

    step: int = 0
    skipped_steps: int = 0
    notes: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoints of one run. Every method is a collective call.

    Args:
        folder: holds one folder a checkpoint.
        config: stored with each checkpoint.
    """

    def __init__(self, folder: Path, engine: Any, average: TeacherAverage, config: RunConfig) -> None:
        self._folder = folder
        self._engine = engine
        self._average = average
        self._config = to_yaml(config)
        self._keep = config.efficiency.training.keep_checkpoints

    def save(self, step: int, skipped_steps: int) -> None:
        """Write a checkpoint, then delete all but the newest ones.

        Raises:
            CheckpointError: on every rank, if one could not write its part. Earlier checkpoints are untouched.
        """
        folder = files.folder_of(self._folder, step)
        rank = dist.get_rank()
        writer = GuardedWriter(self._engine.checkpoint_engine)
        if rank == 0:
            # What stands under this name is torn: a whole checkpoint of this step would have been resumed from.
            shutil.rmtree(folder, ignore_errors=True)
            writer.makedirs(str(folder), exist_ok=True)
        dist.barrier()
        self._save_engine(writer, folder.name)
        state = {"skipped_steps": skipped_steps, "average": self._average.state_dict(rank)}
        writer.save(state, _side_file(folder, rank))
        digests = writer.digests(folder)

        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (writer.failure, digests))
        failure = next((reason for reason, _ in gathered if reason), None)
        if failure is None:
            written = {name: value for _, part in gathered for name, value in part.items()}
            failure = _on_first_rank(lambda: files.write_manifest(folder, self._manifest(step, written)))
        if failure is not None:
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            dist.barrier()
            raise CheckpointError(self._no_room(step, failure))
        if rank == 0:
            prune(self._folder, self._keep)

    def resume(self, *, allowed: bool = True) -> Resumed:
        """Restore model, optimizer and teacher from the newest whole checkpoint; without any, start at step 0.

        Raises:
            CheckpointError: on every rank and before anything is changed: the checkpoint is of another model, or of
                another number of ranks, ZeRO stage or precision; or none is whole any more; or there are checkpoints,
                and the run is not `allowed` to continue.
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
        self._require_same_run(folder, manifest)
        self._engine.load_checkpoint(str(self._folder), tag=folder.name)
        own = _read_side_file(folder, dist.get_rank())
        average = own["average"]
        if not average and dist.get_rank() > 0:
            average = _read_side_file(folder, 0)["average"]
        self._average.load_state_dict(average)
        notes.append(f"continuing after step {manifest.step} from {folder}")
        return Resumed(manifest.step, own["skipped_steps"], tuple(notes))

    def _save_engine(self, writer: GuardedWriter, tag: str) -> None:
        engine = self._engine
        inner, engine.checkpoint_engine = engine.checkpoint_engine, writer
        # DeepSpeed drops scripts beside the checkpoints; on a full disk that would raise on one rank.
        engine._copy_recovery_script = lambda save_path: None
        try:
            # Its own `latest` comes before the other ranks have finished; the manifest comes after.
            engine.save_checkpoint(str(self._folder), tag=tag, save_latest=False)
        finally:
            engine.checkpoint_engine = inner

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
        if any(isinstance(manifest, Manifest) for _, manifest in listed[0]):
            raise CheckpointError(
                f"no checkpoint in {self._folder} is whole: {'; '.join(notes)}. Delete the folder to start at step 0"
            )
        # A save that never finished is nothing to lose: the first one was interrupted.
        return None, notes

    def _manifest(self, step: int, written: dict[str, Any]) -> Manifest:
        return Manifest(
            step=step,
            world_size=dist.get_world_size(),
            zero_stage=self._engine.zero_optimization_stage(),
            precision=precision_of(self._engine),
            parameters=parameter_shapes(self._engine.module),
            files=written,
            config=self._config,
        )

    def _require_same_run(self, folder: Path, manifest: Manifest) -> None:
        own = self._manifest(manifest.step, manifest.files)
        for name in own.parameters | manifest.parameters:
            saved, wanted = manifest.parameters.get(name), own.parameters.get(name)
            if saved != wanted:
                raise CheckpointError(
                    f"{folder} is of another model: {name} is {saved or 'absent'} there and {wanted or 'absent'} in "
                    "this recipe. Restore the recipe's model section, or choose another training.output to start anew"
                )
        if (manifest.world_size, manifest.zero_stage, manifest.precision) != (
            own.world_size,
            own.zero_stage,
            own.precision,
        ):
            raise CheckpointError(
                f"{folder} was saved by {manifest.world_size} ranks at zero_stage={manifest.zero_stage} in "
                f"{manifest.precision}; this run has {own.world_size} ranks at zero_stage={own.zero_stage} in "
                f"{own.precision}. Resume with {manifest.world_size} ranks, training.zero_stage={manifest.zero_stage} "
                f"and training.precision={manifest.precision}, or choose another training.output to start anew"
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


def _on_first_rank(action: Callable[[], None]) -> str | None:
    """Run `action` on rank 0; why it failed, if it did, on every rank."""
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, src=0)
    return failure[0]


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all checkpoints, torn ones too, but the newest `keep` that have a manifest."""
    whole = [path for path in files.folders(checkpoints) if isinstance(files.read_manifest(path), Manifest)]
    for path in files.folders(checkpoints):
        if path not in whole[:keep]:
            shutil.rmtree(path, ignore_errors=True)


def _side_file(folder: Path, rank: int) -> Path:
    return folder / f"slap_fast-rank-{rank:05d}.pt"


def _read_side_file(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(_side_file(folder, rank), map_location="cpu", weights_only=True)


def _size(engine: Any) -> int:
    """Bytes of a checkpoint, nearly: parameters, float32 masters with two moments, and the teacher's average."""
    total = 0
    for parameter in engine.module.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        total += count * (parameter.element_size() + (12 if parameter.requires_grad else 4))
    return total
