"""Augmentation masks: SpecAugment masks for the frames, and the token mask for the student."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slap_fast.config.recipe import AugmentationConfig
from slap_fast.data.sampling.keyed_random import Purpose, keyed_generator


@dataclass(frozen=True)
class ClipMasks:
    """The masks of one clip.

    Attributes:
        time_masked: `[frames]` bool, True for masked frames.
        mel_masked: `[n_mels]` bool, True for masked mel bins.
        masked_tokens: `[M]` int64, ascending positions within the clip.
    """

    time_masked: np.ndarray
    mel_masked: np.ndarray
    masked_tokens: np.ndarray


class MaskSampler:
    """Draws the masks of a clip from (seed, step, clip), independent of the rank and the rest of the batch."""

    def __init__(self, settings: AugmentationConfig, *, seed: int) -> None:
        """
        Raises:
            ValueError: a count or width is negative, or a fraction is outside [0, 1].
        """
        for name in ("time_masks", "time_mask_frames", "mel_masks", "mel_mask_bins"):
            if getattr(settings, name) < 0:
                raise ValueError(f"augmentation.{name} is {getattr(settings, name)}; it must not be negative")
        for name in ("time_mask_fraction", "masked_fraction"):
            if not 0.0 <= getattr(settings, name) <= 1.0:
                raise ValueError(f"augmentation.{name} is {getattr(settings, name)}; it must be in [0, 1]")
        self._settings = settings
        self._seed = seed

    def draw(self, step: int, clip: int, *, frames: int, n_mels: int, tokens: int) -> ClipMasks:
        """The masks of `clip` in `step`.

        SpecAugment (Park et al., 2019): `time_masks` spans of U[0, min(time_mask_frames, time_mask_fraction * frames)]
        frames and `mel_masks` spans of U[0, mel_mask_bins] bins, each at a uniform position; spans may overlap. Token
        mask: floor(masked_fraction * tokens) tokens, uniform without replacement.
        """
        settings = self._settings
        generator = keyed_generator(self._seed, Purpose.MASKS, step, clip)
        # Tokens first, so that the token mask does not depend on the SpecAugment settings.
        masked = generator.permutation(tokens)[: int(settings.masked_fraction * tokens)]
        max_width = min(settings.time_mask_frames, int(settings.time_mask_fraction * frames))
        return ClipMasks(
            time_masked=_spans(generator, frames, settings.time_masks, max_width),
            mel_masked=_spans(generator, n_mels, settings.mel_masks, min(settings.mel_mask_bins, n_mels)),
            masked_tokens=np.sort(masked).astype(np.int64),
        )


def _spans(generator: np.random.Generator, length: int, count: int, max_width: int) -> np.ndarray:
    """`[length]` bool, True within `count` random spans of at most `max_width`."""
    masked = np.zeros(length, dtype=bool)
    for _ in range(count):
        width = int(generator.integers(max_width + 1))
        start = int(generator.integers(length - width + 1))
        masked[start : start + width] = True
    return masked
