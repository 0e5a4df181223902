"""Checkpoint folder: file names, manifest, integrity check and retention.

The manifest is written last and removed first, so that a crash at any moment leaves a complete checkpoint or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slap_fast.runtime.durable_files import replace_text, sync_folder

MANIFEST = "MANIFEST.json"
FORMAT = 3
UNFINISHED = f"no {MANIFEST}: the save did not finish"


@dataclass(frozen=True)
class Manifest:
    """Content of a checkpoint. A folder without a manifest is not a checkpoint.

    Attributes:
        step: completed steps.
        skipped_steps: completed steps that were skipped.
        adam_steps: step count of Adam; 0: no moments are stored.
        world_size: number of ranks that saved.
        zero_stage: DeepSpeed's ZeRO stage.
        precision: `bf16` or `fp32`.
        parameters: shape of each parameter by name.
        files: `{name: {"size": bytes, "sha256": hex}}`.
        config: the run's configuration as YAML.
        data: one description for each dataset of the run, which changes when its clips change.
    """

    step: int
    skipped_steps: int
    adam_steps: int
    world_size: int
    zero_stage: int
    precision: str
    parameters: dict[str, list[int]]
    files: dict[str, dict[str, Any]]
    config: str
    data: list[str] = field(default_factory=list)


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def rank_file(folder: Path, rank: int) -> Path:
    """The part of one rank: float32 weights, Adam's moments and the EMA teacher."""
    return folder / f"rank-{rank:05d}.safetensors"


def model_folder(folder: Path) -> Path:
    """The student without its weights: configuration and tokenizer."""
    return folder / "model"


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Folders of complete and incomplete checkpoints, newest first."""
    return sorted((path for path in checkpoints.glob("step-*") if path.is_dir()), reverse=True)


def file_digest(path: Path) -> dict[str, Any]:
    """Size and hash of a file, after an fsync."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(1 << 20):
            sha256.update(block)
    return {"size": path.stat().st_size, "sha256": sha256.hexdigest()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    for parent in sorted({(folder / name).parent for name in manifest.files}, reverse=True):
        sync_folder(parent)
    sync_folder(folder)
    content = asdict(manifest)
    replace_text(folder / MANIFEST, json.dumps({"format": FORMAT, "sha256": _checksum(content), **content}, indent=1))
    replace_text(folder.parent / "latest", folder.name)


def read_manifest(folder: Path) -> Manifest | str:
    """The manifest, or the reason why it cannot be used."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (found := content.pop("format")) != FORMAT:
            return f"{MANIFEST} has format {found!r}; this slap-fast reads {FORMAT}: use the version that saved it"
        if content.pop("sha256") != _checksum(content):
            return f"{MANIFEST} has changed since it was saved"
        manifest = Manifest(**content)
    except FileNotFoundError:
        return UNFINISHED
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name in ("step", "skipped_steps", "adam_steps", "world_size", "zero_stage"):
        if type(value := getattr(manifest, name)) is not int or not 0 <= value < 1 << 48:
            return f"{MANIFEST} has {name} {value!r}"
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names the file {name!r}, which is not in the checkpoint"
    if len(manifest.files) < manifest.world_size:
        return f"{MANIFEST} lists {len(manifest.files)} files of {manifest.world_size} ranks"
    return manifest


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """The files of a checkpoint's model without the weights, by name, such as `config.json` and `tokenizer/...`.

    Raises:
        OSError: a file cannot be read.
    """
    inside = model_folder(folder)
    paths = (folder / name for name in manifest.files)
    return {path.relative_to(inside).as_posix(): path.read_bytes() for path in paths if inside in path.parents}


def newest_checkpoint(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint with a valid manifest; its files are not checked."""
    found = ((folder, read_manifest(folder)) for folder in checkpoint_folders(checkpoints))
    return next(((folder, manifest) for folder, manifest in found if isinstance(manifest, Manifest)), None)


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, its manifest first."""
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def prune_checkpoints(
    checkpoints: Path, keep: int, keep_every: int | None = None, damaged: Collection[Path] = ()
) -> None:
    """Delete all checkpoints except the newest `keep` and those of each `keep_every`-th step.

    Incomplete and `damaged` checkpoints are always deleted.
    """
    folders = checkpoint_folders(checkpoints)
    manifests = {folder: UNFINISHED if folder in damaged else read_manifest(folder) for folder in folders}
    complete = {folder: manifest.step for folder, manifest in manifests.items() if isinstance(manifest, Manifest)}
    kept = set(list(complete)[:keep])
    if keep_every is not None:
        kept |= {folder for folder, step in complete.items() if step % keep_every == 0}
    for folder in manifests:
        if folder not in kept:
            delete_checkpoint(folder)


def find_damage(folder: Path, manifest: Manifest, rank: int = 0, world_size: int = 1) -> str | None:
    """The first file that differs from the manifest, and how; None if all match. Each rank checks a share of files."""
    for name, expected in sorted(manifest.files.items())[rank::world_size]:
        path = folder / name
        try:
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if file_digest(path) != expected:
                return f"{name} has changed since it was saved"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None
