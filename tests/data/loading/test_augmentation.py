from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from slap_fast.config.recipe import AugmentationConfig
from slap_fast.data.loading.augmentation import ClipMasks, MaskSampler

SHAPE = {"frames": 998, "n_mels": 64, "tokens": 252}
NONE = AugmentationConfig(time_masks=0, mel_masks=0, masked_fraction=0.0)


def draw(
    step: int = 0, clip: int = 0, *, seed: int = 0, config: AugmentationConfig | None = None, **shape: int
) -> ClipMasks:
    return MaskSampler(config or AugmentationConfig(), seed=seed).draw(step, clip, **(SHAPE | shape))


def as_lists(masks: ClipMasks) -> list[list[int]]:
    return [value.tolist() for value in dataclasses.astuple(masks)]


def runs(masked: np.ndarray) -> list[tuple[int, int]]:
    """(start, width) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [1, 4, 7, 252])
def test_the_floor_of_the_token_fraction_is_masked(fraction: float, tokens: int) -> None:
    masked = draw(config=AugmentationConfig(masked_fraction=fraction), tokens=tokens).masked_tokens
    assert masked.dtype == np.int64
    assert len(masked) == int(fraction * tokens)
    assert (np.diff(masked) > 0).all()
    assert all(0 <= token < tokens for token in masked)


def test_every_token_is_masked_equally_often() -> None:
    draws, tokens = 4000, 8
    counts = np.zeros(tokens)
    for step in range(draws):
        counts[draw(step, tokens=tokens).masked_tokens] += 1
    # Five standard deviations of a binomial with p = 1/2.
    assert np.abs(counts - draws / 2).max() < 5 * np.sqrt(draws) / 2


def test_masks_depend_only_on_seed_step_and_clip() -> None:
    sampler = MaskSampler(AugmentationConfig(), seed=7)
    first = sampler.draw(3, 11, **SHAPE)
    sampler.draw(4, 12, **SHAPE)
    assert as_lists(first) == as_lists(sampler.draw(3, 11, **SHAPE)) == as_lists(draw(3, 11, seed=7))
    others = [draw(3, 11, seed=8), draw(4, 11, seed=7), draw(3, 12, seed=7), draw(11, 3, seed=7)]
    for other in others:
        assert first.masked_tokens.tolist() != other.masked_tokens.tolist()
    large = 2**64 - 1
    assert as_lists(draw(large, large - 1, seed=large)) == as_lists(draw(large, large - 1, seed=large))
    assert as_lists(draw(large, large - 1, seed=large)) != as_lists(draw(large, large, seed=large))


def test_the_token_mask_does_not_depend_on_spec_augment() -> None:
    plain = draw(config=dataclasses.replace(NONE, masked_fraction=0.5))
    assert plain.masked_tokens.tolist() == draw().masked_tokens.tolist()
    assert not plain.time_masked.any()
    assert not plain.mel_masked.any()


def test_time_masks_have_every_width_up_to_the_limit_at_every_position() -> None:
    config = dataclasses.replace(NONE, time_masks=1, time_mask_frames=5, time_mask_fraction=1.0)
    seen = {run for step in range(3000) for run in runs(draw(step, config=config, frames=12).time_masked)}
    assert seen == {(start, width) for width in range(1, 6) for start in range(12 - width + 1)}


def test_no_time_mask_exceeds_its_fraction_of_the_clip() -> None:
    config = dataclasses.replace(NONE, time_masks=1, time_mask_frames=48, time_mask_fraction=0.2)
    widths = [width for step in range(500) for _, width in runs(draw(step, config=config, frames=50).time_masked)]
    assert max(widths) == 10
    assert not draw(config=config, frames=4).time_masked.any()


def test_mel_masks_have_every_width_up_to_the_limit() -> None:
    config = dataclasses.replace(NONE, mel_masks=1, mel_mask_bins=6)
    drawn = [runs(draw(step, config=config).mel_masked) for step in range(1500)]
    assert {found[0][1] if found else 0 for found in drawn} == set(range(7))
    assert {found[0][0] for found in drawn if found} >= {0, 58, 63}


def test_a_mel_mask_is_at_most_as_wide_as_the_spectrogram() -> None:
    config = dataclasses.replace(NONE, mel_masks=1, mel_mask_bins=100)
    assert max(draw(step, config=config, n_mels=3).mel_masked.sum() for step in range(50)) == 3


def test_the_shortest_clip_has_masks() -> None:
    masks = draw(frames=1, tokens=4)
    assert masks.time_masked.tolist() == [False]
    assert len(masks.masked_tokens) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("time_masks", -1), ("mel_mask_bins", -3), ("masked_fraction", 1.5), ("time_mask_fraction", float("nan"))],
)
def test_invalid_settings_raise(name: str, value: Any) -> None:
    config = dataclasses.replace(AugmentationConfig(), **{name: value})
    with pytest.raises(ValueError, match=rf"augmentation\.{name} is {value}"):
        MaskSampler(config, seed=0)
