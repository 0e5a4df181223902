"""Resuming with other numbers of ranks, ZeRO stages and precisions, and after a kill during a save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.phases import CHAINS, CHANGES
from tests.training.ranks import finish, start_program, tail

FLOAT32 = [name for name, layouts in CHAINS.items() if all(precision == "fp32" for *_, precision in layouts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    for name in (names := ["chains", "killed_while_saving"]):
        (folder / name).mkdir()
    log = folder / "log.txt"
    process = start_program("tests.training.phases", [str(folder), *names], log)
    assert finish([process], log) == [0], tail(log)
    return folder


def seen(folder: Path, chain: str) -> list[dict[str, Any]]:
    return [json.loads((folder / "chains" / f"{chain}-{phase}.json").read_text()) for phase in range(len(CHANGES))]


@pytest.mark.parametrize("chain", FLOAT32)
def test_a_run_that_changes_ranks_and_stages_has_the_losses_of_a_run_that_does_not(folder: Path, chain: str) -> None:
    straight = json.loads((folder / "chains" / "straight.json").read_text())
    losses = [loss for phase in seen(folder, chain) for loss in phase["losses"]]
    assert losses == pytest.approx(straight, rel=1e-5)


@pytest.mark.parametrize("chain", CHAINS)
def test_weights_moments_and_teacher_are_the_same_bits_after_every_change(folder: Path, chain: str) -> None:
    first, *changed = seen(folder, chain)
    assert first["resumed"] == [0, 0]
    assert [phase["resumed"] for phase in changed] == [[2, 0], [3, 1]]
    assert [phase["differences"] for phase in changed] == [[], []]


def test_a_changed_layout_is_reported(folder: Path) -> None:
    _, second, third = seen(folder, "fp32 to bf16")
    assert "continuing after step 2" in second["notes"][0]
    assert second["notes"][1] == (
        "saved by 2 ranks at zero_stage=2 in fp32; resumed on 1 rank at zero_stage=1 in bf16 with the same weights, "
        "moments and teacher"
    )
    assert third["notes"][1].endswith(
        "resumed on 3 ranks at zero_stage=3 in bf16 with the same weights, moments and teacher"
    )


@pytest.mark.parametrize("chain", CHAINS)
def test_a_model_exported_from_a_checkpoint_equals_the_one_saved_by_the_run(folder: Path, chain: str) -> None:
    made, exported = (
        {path.relative_to(part).as_posix(): path.read_bytes() for path in part.rglob("*") if path.is_file()}
        for part in (folder / "chains" / chain / name for name in ("model", "exported"))
    )
    assert made.keys() >= {"config.json", "model.safetensors", "text_config/config.json"}
    assert made == exported


def test_a_run_killed_during_an_asynchronous_save_resumes_from_the_checkpoint_before(folder: Path) -> None:
    after = json.loads((folder / "killed_while_saving" / "after.json").read_text())
    losses = json.loads((folder / "killed_while_saving" / "losses.json").read_text())
    assert after["step"] == 1
    assert "step-00000003: no MANIFEST.json: the save did not finish" in after["notes"][0]
    # The checkpoint holds the state of step 1, although two more steps were taken before it was written.
    assert after["losses"] == losses[1:]
