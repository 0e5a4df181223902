from __future__ import annotations

import numpy as np
import pytest

from slap_fast.evaluation.bootstrap import confidence_interval


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=4000)
    low, high = confidence_interval(values, resamples=4000)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)


def test_items_of_a_group_are_resampled_together() -> None:
    per_group = np.random.default_rng(2).random(50)
    groups = np.repeat(np.arange(50), 7)
    shuffled = np.random.default_rng(3).permutation(350)
    grouped = confidence_interval(per_group[groups][shuffled], groups=groups[shuffled])
    assert grouped == pytest.approx(confidence_interval(per_group))
    alone = confidence_interval(per_group[groups])
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_any_statistic_is_taken_of_the_same_resamples_as_the_mean() -> None:
    values = np.random.default_rng(4).random(60)
    groups = np.random.default_rng(5).integers(0, 9, 60)
    fast = confidence_interval(values, groups=groups, resamples=200)
    assert confidence_interval(values, groups=groups, resamples=200, statistic=lambda one: one.mean()) == pytest.approx(
        fast
    )
    assert confidence_interval(values, groups=groups, resamples=200, seed=1) != fast


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "nothing to resample"),
        ([1.0, np.nan], {}, r"per_item\[1\] is not finite"),
        ([1.0, 2.0], {"groups": np.array([1])}, "there are 2 items"),
        ([1.0], {"resamples": 0}, "resamples is 0"),
        ([1.0], {"level": 95}, "level is 95"),
    ],
)
def test_invalid_arguments_are_an_error(values: list[float], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confidence_interval(np.array(values), **options)  # type: ignore[arg-type]
