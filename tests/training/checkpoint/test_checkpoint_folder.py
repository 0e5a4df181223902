"""Checkpoint folder: damaged and incomplete checkpoints are detected, and old ones are deleted."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from slap_fast.training.checkpoint.folder import (
    MANIFEST,
    Manifest,
    file_digest,
    find_damage,
    prune_checkpoints,
    read_manifest,
    step_folder,
    write_manifest,
)


def write(checkpoints: Path, step: int) -> Path:
    folder = step_folder(checkpoints, step)
    folder.mkdir(parents=True)
    for name in ("a.pt", "b.pt"):
        (folder / name).write_bytes(bytes(range(100)) * step)
    manifest = Manifest(
        step=step,
        skipped_steps=0,
        adam_steps=step,
        world_size=2,
        zero_stage=1,
        precision="fp32",
        parameters={"weight": [3, 4]},
        files={name: file_digest(folder / name) for name in ("a.pt", "b.pt")},
        config="recipe: {}\n",
    )
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    return folder


def damage(folder: Path, rank: int = 0, world_size: int = 1) -> str | None:
    manifest = read_manifest(folder)
    assert isinstance(manifest, Manifest)
    return find_damage(folder, manifest, rank, world_size)


def test_an_undamaged_checkpoint_is_the_latest(tmp_path: Path) -> None:
    assert damage(write(tmp_path, 3)) is None
    assert (tmp_path / "latest").read_text() == "step-00000003"


def test_every_kind_of_damage_is_found_by_the_rank_that_checks_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    path = folder / "b.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert damage(folder) == "b.pt has 299 bytes instead of 300"
    path.write_bytes(content[:-1] + b"x")
    assert damage(folder) == "b.pt has changed since it was saved"
    assert [damage(folder, rank, 2) is None for rank in range(2)] == [True, False]
    path.unlink()
    assert "b.pt cannot be read" in str(damage(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 3, "step": 3}'])
def test_an_unreadable_manifest_is_rejected(text: str, tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    (folder / MANIFEST).write_text(text)
    assert isinstance(read_manifest(folder), str)


def test_an_altered_manifest_is_rejected(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    path = folder / MANIFEST
    content = path.read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        altered = bytearray(content)
        altered[chance.randrange(len(content))] = chance.choice(b'0123456789abcdefx"{}[], ')
        path.write_bytes(altered)
        manifest = read_manifest(folder)
        # A replaced space between two values changes nothing.
        assert isinstance(manifest, str) or json.loads(altered) == json.loads(content)
    path.write_text(content.decode().replace('"format": 3', '"format": 2'))
    assert read_manifest(folder) == (
        "MANIFEST.json has format 2; this slap-fast reads 3: use the version that saved it"
    )


def test_a_manifest_with_files_outside_its_folder_is_rejected(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    manifest = read_manifest(folder)
    assert isinstance(manifest, Manifest)
    for name in ("/etc/passwd", "../step-00000003/a.pt"):
        write_manifest(folder, replace(manifest, files=manifest.files | {name: {"size": 1, "sha256": ""}}))
        assert "which is not in the checkpoint" in str(read_manifest(folder))
    for world_size, message in (("2", "has world_size '2'"), (-1, "world_size -1"), (3, "2 files of 3 ranks")):
        write_manifest(folder, replace(manifest, world_size=world_size))  # type: ignore[arg-type]
        assert message in str(read_manifest(folder))


def test_the_newest_complete_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write(tmp_path, step)
    step_folder(tmp_path, 11).mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000010"]
    prune_checkpoints(tmp_path, keep=1, damaged={step_folder(tmp_path, 10)})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002"]


def test_checkpoints_of_every_nth_step_are_also_kept(tmp_path: Path) -> None:
    for step in (3, 4, 6, 8, 9, 10, 11):
        write(tmp_path, step)
    (step_folder(tmp_path, 8) / MANIFEST).unlink()
    prune_checkpoints(tmp_path, keep=1, keep_every=4)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000004", "step-00000011"]
