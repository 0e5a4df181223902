"""Files of a checkpoint: written so that a crash at any moment leaves either a whole checkpoint or none."""

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

from slap_fast.runtime.durable_files import replace_file, sync_folder

MANIFEST = "MANIFEST.json"
FORMAT = 3
UNFINISHED = f"no {MANIFEST}: the save did not finish"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds. Written last: a folder without it is not a checkpoint.

    Attributes:
        step: steps completed.
        skipped_steps: those of them that were not applied.
        adam_steps: steps that Adam has counted; 0: there are no moments.
        world_size: ranks that saved.
        zero_stage: DeepSpeed's ZeRO stage.
        precision: `bf16` or `fp32`.
        parameters: shape by name.
        files: `{name: {"size": bytes, "sha256": hex}}`.
        config: the run's configuration as YAML.
        data: the datasets of the run, each in words that change with its clips.
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


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def rank_file(folder: Path, rank: int) -> Path:
    """What one rank saved, of float32 weights, Adam's moments and the teacher's average."""
    return folder / f"rank-{rank:05d}.safetensors"


def model_folder(folder: Path) -> Path:
    """The student but its weights, as `SLAP.save_description` writes it."""
    return folder / "model"


def folders(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, whole or torn, newest first."""
    return sorted((path for path in checkpoints.glob("step-*") if path.is_dir()), reverse=True)


def digest(path: Path) -> dict[str, Any]:
    """Size and hash of a file, forced to the disk first."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(1 << 20):
            sha256.update(block)
    return {"size": path.stat().st_size, "sha256": sha256.hexdigest()}


def write_durably(path: Path, text: str) -> None:
    replace_file(path, [text.encode("utf-8")])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    for parent in sorted({(folder / name).parent for name in manifest.files}, reverse=True):
        sync_folder(parent)
    sync_folder(folder)
    content = asdict(manifest)
    write_durably(folder / MANIFEST, json.dumps({"format": FORMAT, "sha256": _checksum(content), **content}, indent=1))
    write_durably(folder.parent / "latest", folder.name)


def read_manifest(folder: Path) -> Manifest | str:
    """The manifest, or why there is none."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (found := content.pop("format")) != FORMAT:
            return f"{MANIFEST} has format {found!r}, and this slap-fast reads {FORMAT}; use the version that saved it"
        if content.pop("sha256") != _checksum(content):
            return f"{MANIFEST} has changed since it was saved"
        manifest = Manifest(**content)
    except FileNotFoundError:
        return UNFINISHED
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name in ("step", "skipped_steps", "adam_steps", "world_size", "zero_stage"):
        if type(value := getattr(manifest, name)) is not int or not 0 <= value < 1 << 48:
            return f"{MANIFEST} says {name} {value!r}"
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names the file {name!r}, which is not in the checkpoint"
    if len(manifest.files) < manifest.world_size:
        return f"{MANIFEST} lists {len(manifest.files)} files of {manifest.world_size} ranks"
    return manifest


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def described(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """What a checkpoint holds of its model besides the weights: `config.json`, `text_config/...`, `tokenizer/...`.

    Raises:
        OSError: a file cannot be read.
    """
    inside = model_folder(folder)
    paths = (folder / name for name in manifest.files)
    return {path.relative_to(inside).as_posix(): path.read_bytes() for path in paths if inside in path.parents}


def newest(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint with a manifest, whether or not its files are whole."""
    found = ((folder, read_manifest(folder)) for folder in folders(checkpoints))
    return next(((folder, manifest) for folder, manifest in found if isinstance(manifest, Manifest)), None)


def delete(folder: Path) -> None:
    """Delete a checkpoint, so that a crash on the way leaves none rather than half of one."""
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def prune(checkpoints: Path, keep: int, keep_every: int | None = None, damaged: Collection[Path] = ()) -> None:
    """Delete all checkpoints, also torn and `damaged` ones, but the newest `keep` and each `keep_every`-th step's."""
    manifests = {folder: UNFINISHED if folder in damaged else read_manifest(folder) for folder in folders(checkpoints)}
    whole = {folder: manifest.step for folder, manifest in manifests.items() if isinstance(manifest, Manifest)}
    kept = set(list(whole)[:keep])
    if keep_every is not None:
        kept |= {folder for folder, step in whole.items() if step % keep_every == 0}
    for folder in manifests:
        if folder not in kept:
            delete(folder)


def fault(folder: Path, manifest: Manifest, share: int = 0, of: int = 1) -> str | None:
    """The first file that is not as the manifest says; `share` of `of` looks at every `of`-th file only."""
    for name, expected in sorted(manifest.files.items())[share::of]:
        path = folder / name
        try:
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if digest(path) != expected:
                return f"{name} has changed since it was saved"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None
