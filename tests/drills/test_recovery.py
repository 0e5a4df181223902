"""A short recovery drill; `python -m tests.drills.recovery` runs the long one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.drills.recovery import TIMEOUT, FaultOutcome, Run, inject_fault, summarize
from tests.training.tiny_run import write_dataset, write_recipe


@pytest.mark.slow
def test_a_frozen_rank_costs_a_restart_and_a_dead_launcher_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    dataset = write_dataset(tmp_path / "source", tmp_path / "dataset")
    recipe = write_recipe(tmp_path / "tiny.yaml", steps=100_000, save_every=3, timeout=TIMEOUT)
    arguments = [f"recipe={recipe}", f"data.train={dataset}"]
    # Without a text tower a rank starts in half the time: it imports no models of transformers.
    arguments += ["objectives.contrastive_weight=0", "objectives.caption_weight=0"]
    run, generator = Run(tmp_path / "run", arguments, restarts=1), random.Random(0)
    try:
        frozen = inject_fault(run, "freeze", "save", 7, generator)
        assert frozen.named_after is not None
        assert frozen.named_after < TIMEOUT
        assert 3 <= frozen.saved <= frozen.continued_at
        orphaned = inject_fault(run, "launcher", "step", frozen.continued_at + 1, generator, relaunch=False)
        assert orphaned.gone_after is not None
        assert run.saved() >= orphaned.step > frozen.continued_at
        # No step is repeated or left out.
        assert list(run.records()) == list(range(1, run.newest() + 1))
    finally:
        run.marked.kill()


def test_a_drill_is_summarized_by_kind_of_fault() -> None:
    outcomes = [
        FaultOutcome("rank", "step", 1, step=5, saved=3, went_on_after=9.0, continued_at=3),
        FaultOutcome("rank", "save", 1, step=6, saved=3, went_on_after=12.0, continued_at=6, torn=1),
        FaultOutcome("stop", "save", 1, step=8, saved=6, gone_after=2.0, went_on_after=10.0, continued_at=9),
    ]
    assert summarize(outcomes)["rows"] == [
        ["SIGKILL to one rank", 2, 1, 2, None, None, 10.5, 12.0],
        ["SIGTERM to the launcher", 1, 1, 0, None, 2.0, 10.0, 10.0],
        ["all", 3, 2, 2, None, 2.0, 10.0, 12.0],
    ]
