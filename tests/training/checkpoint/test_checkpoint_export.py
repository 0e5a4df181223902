"""`slap-fast export` on damaged and incomplete folders; test_checkpoint_layouts.py exports from real runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slap_fast import cli
from slap_fast.training.checkpoint.folder import Manifest, file_digest, rank_file, step_folder, write_manifest
from slap_fast.training.checkpoint.slice_files import rank_share, write_slices
from slap_fast.training.checkpoint.state_slices import Slice


def write(run: Path, step: int) -> Path:
    """A checkpoint of two ranks whose model is one weight filled with the step."""
    folder = step_folder(run / "checkpoints", step)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    held = [Slice("weight", "student.w", 0, torch.full((6,), float(step)), replicated=True)]
    for rank in range(2):
        write_slices(rank_file(folder, rank), rank_share(held, rank, 2))
    written = ["model/config.json", *(rank_file(folder, rank).name for rank in range(2))]
    manifest = Manifest(
        step=step,
        skipped_steps=0,
        adam_steps=0,
        world_size=2,
        zero_stage=0,
        precision="fp32",
        parameters={"student.w": [2, 3], "teacher_encoder.w": [2, 3]},
        files={name: file_digest(folder / name) for name in written},
        config="recipe: {}\n",
    )
    write_manifest(folder, manifest)
    return folder


def export(checkpoint: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(["export", str(checkpoint), "--out", str(out)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_newest_undamaged_checkpoint_of_a_run_is_exported_and_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", 1)
    damaged, unfinished = write(tmp_path / "run", 2), write(tmp_path / "run", 3)
    rank_file(damaged, 1).write_bytes(b"x")
    (unfinished / "MANIFEST.json").unlink()
    code, output = export(tmp_path / "run", tmp_path / "new" / "out", capsys)
    assert code == 0
    assert f"skipped: {unfinished} is incomplete or damaged: no MANIFEST.json" in output
    assert f"skipped: {damaged} is incomplete or damaged: rank-00001.safetensors has 1 bytes" in output
    assert f"{tmp_path / 'new' / 'out'}: the model after step 1" in output
    weights = load_file(tmp_path / "new" / "out" / "model.safetensors")
    assert {name: value.tolist() for name, value in weights.items()} == {"w": [[1.0] * 3] * 2}
    assert (tmp_path / "new" / "out" / "config.json").exists()


def test_a_given_checkpoint_is_exported_or_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path / "run", 1), write(tmp_path / "run", 2)
    (first / "model" / "planted.py").write_text("a file that the manifest does not list")
    assert export(first, tmp_path / "out", capsys) == (0, f"{tmp_path / 'out'}: the model after step 1\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    (second / "model" / "config.json").write_text("[]")
    code, output = export(second, tmp_path / "other", capsys)
    assert (code, output) == (
        2,
        f"slap-fast export: {second} is incomplete or damaged: model/config.json has changed since it was saved\n",
    )
    assert not (tmp_path / "other").exists()


def test_an_export_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert export(run, tmp_path / "out", capsys) == (2, f"slap-fast export: {run}: no such folder\n")
    run.mkdir()
    assert "it has no checkpoints" in export(run, tmp_path / "out", capsys)[1]
    (write(run, 1) / "MANIFEST.json").unlink()
    code, output = export(run, tmp_path / "out", capsys)
    assert code == 2
    assert output.endswith(f"slap-fast export: {run}: none of its 1 checkpoints is complete\n")
    assert "exists; choose another --out" in export(run, tmp_path, capsys)[1]
