"""Synthetic clips: a stream of captioned sounds in which clip `i` depends on the split, the seed and `i` alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from slap_fast.synthetic.captions import write_captions
from slap_fast.synthetic.combinations import draw_training, validation_order
from slap_fast.synthetic.dsp import Audio
from slap_fast.synthetic.rendering import render
from slap_fast.synthetic.scenes import Scene, draw_scene
from slap_fast.synthetic.seeding import SPLIT_STREAMS, generator

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class SyntheticClip:
    """A captioned clip that has not been rendered yet: small, picklable.

    Attributes:
        key: unique in a dataset, `synth-train-000123`.
        captions: three to five, lower case.
        scene: what sounds when.
        seed: of the dataset.
        index: of the clip in its split.
        split: which split.
    """

    key: str
    captions: tuple[str, ...]
    scene: Scene
    seed: int
    index: int
    split: Split

    @property
    def metadata(self) -> dict[str, Any]:
        """Ground truth as plain JSON types: events (with onset and duration in seconds), structure, noise in dB."""
        return {
            "structure": self.scene.structure,
            "duration": self.scene.duration,
            "noise_db": self.scene.noise_db,
            "events": [
                {
                    "event": track.event,
                    "onset": track.onset,
                    "duration": track.duration,
                    "strikes": [track.onset + strike for strike in track.strikes],
                    "count": track.count,
                    "loudness": track.loudness,
                }
                for track in self.scene.tracks
            ],
        }

    def render(self) -> Audio:
        """The waveform, `[S]` float32 at 16 kHz, peak at most 0.95; the same bytes at each call in any process.

        Another version of numpy or another instruction set may round the last bit another way.
        """
        return render(self.scene, self.seed, self.index, SPLIT_STREAMS[self.split])


def synthetic_clip(split: Split, index: int, seed: int) -> SyntheticClip:
    """Clip `index` of a split.

    Training clips are drawn; validation clips walk through the held-out combinations, and only a split of more clips
    than there are combinations (`len(validation_order(seed))`) meets one again, in another rendering.

    Args:
        split: "train" or "validation".
        index: from 0.
        seed: of the dataset, in [0, 2**64).

    Raises:
        ValueError: an unknown split, or an index or seed out of range.
    """
    if split not in SPLIT_STREAMS:
        raise ValueError(f"split is {split!r}; choose 'train' or 'validation'")
    for name, value in (("index", index), ("seed", seed)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} is {value}; it must lie in [0, 2**64)")
    rng = generator(seed, index, SPLIT_STREAMS[split])
    order = validation_order(seed) if split == "validation" else ()
    scene = draw_scene(order[index % len(order)] if order else draw_training(rng), rng)
    return SyntheticClip(f"synth-{split}-{index:06d}", write_captions(scene, rng), scene, seed, index, split)


def iter_synthetic(split: Split, count: int, seed: int) -> Iterator[SyntheticClip]:
    """The first `count` clips of a split; see `synthetic_clip`.

    Raises:
        ValueError: at once, as `synthetic_clip`, and for a negative count.
    """
    if count < 0:
        raise ValueError(f"count is {count}; it must not be negative")
    synthetic_clip(split, 0, seed)
    return (synthetic_clip(split, index, seed) for index in range(count))
