"""Whole, torn and damaged checkpoints are told apart, and only old whole ones are deleted."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from slap_fast.training.checkpoint import files
from slap_fast.training.checkpoint.files import Manifest, prune


def write(checkpoints: Path, step: int) -> Path:
    folder = files.folder_of(checkpoints, step)
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
        files={name: files.digest(folder / name) for name in ("a.pt", "b.pt")},
        config="recipe: {}\n",
    )
    files.write_manifest(folder, manifest)
    assert files.read_manifest(folder) == manifest
    return folder


def fault(folder: Path, share: int = 0, of: int = 1) -> str | None:
    manifest = files.read_manifest(folder)
    assert isinstance(manifest, Manifest)
    return files.fault(folder, manifest, share, of)


def test_a_whole_checkpoint_has_no_fault_and_is_the_latest(tmp_path: Path) -> None:
    assert fault(write(tmp_path, 3)) is None
    assert (tmp_path / "latest").read_text() == "step-00000003"


def test_every_kind_of_damage_is_found_by_the_rank_that_looks_there(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    path = folder / "b.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert fault(folder) == "b.pt has 299 bytes instead of 300"
    path.write_bytes(content[:-1] + b"x")
    assert fault(folder) == "b.pt has changed since it was saved"
    assert [fault(folder, share, of=2) is None for share in range(2)] == [True, False]
    path.unlink()
    assert "b.pt cannot be read" in str(fault(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 3, "step": 3}'])
def test_a_manifest_that_cannot_be_read_is_no_manifest(text: str, tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    (folder / files.MANIFEST).write_text(text)
    assert isinstance(files.read_manifest(folder), str)


def test_a_manifest_that_was_altered_is_no_manifest(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    path = folder / files.MANIFEST
    content = path.read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        altered = bytearray(content)
        altered[chance.randrange(len(content))] = chance.choice(b'0123456789abcdefx"{}[], ')
        path.write_bytes(altered)
        manifest = files.read_manifest(folder)
        # Another space between two values changes nothing.
        assert isinstance(manifest, str) or json.loads(altered) == json.loads(content)
    path.write_text(content.decode().replace('"format": 3', '"format": 2'))
    assert files.read_manifest(folder) == (
        "MANIFEST.json has format 2, and this slap-fast reads 3; use the version that saved it"
    )


def test_a_manifest_names_files_of_its_own_folder_only(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    manifest = files.read_manifest(folder)
    assert isinstance(manifest, Manifest)
    for name in ("/etc/passwd", "../step-00000003/a.pt"):
        files.write_manifest(folder, replace(manifest, files=manifest.files | {name: {"size": 1, "sha256": ""}}))
        assert "which is not in the checkpoint" in str(files.read_manifest(folder))
    for world_size, message in (("2", "says world_size '2'"), (-1, "world_size -1"), (3, "2 files of 3 ranks")):
        files.write_manifest(folder, replace(manifest, world_size=world_size))  # type: ignore[arg-type]
        assert message in str(files.read_manifest(folder))


def test_the_newest_whole_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write(tmp_path, step)
    files.folder_of(tmp_path, 11).mkdir()
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000010"]
    prune(tmp_path, keep=1, damaged={files.folder_of(tmp_path, 10)})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002"]


def test_checkpoints_of_every_so_many_steps_are_kept_too(tmp_path: Path) -> None:
    for step in (3, 4, 6, 8, 9, 10, 11):
        write(tmp_path, step)
    (files.folder_of(tmp_path, 8) / files.MANIFEST).unlink()
    prune(tmp_path, keep=1, keep_every=4)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000004", "step-00000011"]
