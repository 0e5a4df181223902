"""Which clips are blamed for a loss that is not finite, and how speed is counted."""

from __future__ import annotations

from slap_fast.training.watch import suspects
from tests.training import tiny


def test_clips_with_samples_that_are_not_finite_are_blamed_alone() -> None:
    batch = tiny.batch(tiny.run_config(), step=3)
    assert suspects(batch) == batch.clip_ids.tolist()
    assert suspects(tiny.poisoned(batch)) == [int(batch.clip_ids[0])]
