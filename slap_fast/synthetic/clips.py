"""Synthetic clips: clip `i` of a split is a pure function of (split, seed, i)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from slap_fast.synthetic.captions import write_captions
from slap_fast.synthetic.combinations import EVENT_SETS, EventSet, draw_training, validation_order
from slap_fast.synthetic.dsp import Audio
from slap_fast.synthetic.rendering import render
from slap_fast.synthetic.scenes import Scene, draw_scene
from slap_fast.synthetic.seeding import SPLIT_STREAMS, generator

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class SyntheticClip:
    """A captioned clip before rendering: small and picklable.

    Attributes:
        key: unique in a dataset, such as `synth-train-000123`.
        captions: three to five, lower case.
        scene: the events and their timing.
        seed: seed of the dataset.
        index: index of the clip in its split.
        split: "train" or "validation".
        events: the event set.
    """

    key: str
    captions: tuple[str, ...]
    scene: Scene
    seed: int
    index: int
    split: Split
    events: EventSet = "default"

    @property
    def metadata(self) -> dict[str, Any]:
        """Ground truth as JSON types: events (onset and duration in seconds), structure, noise in dB."""
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
        """The waveform, `[S]` float32 at 16 kHz, peak at most 0.95; the same bytes for each call in any process.

        The last bit may differ with another NumPy version or instruction set.
        """
        return render(self.scene, self.seed, self.index, SPLIT_STREAMS[self.events][self.split])


def synthetic_clip(split: Split, index: int, seed: int, events: EventSet = "default") -> SyntheticClip:
    """Clip `index` of a split.

    The combinations of training clips are random. Validation clips go through the held-out combinations in order; only
    an index beyond their number (`len(validation_order(seed, events))`) repeats one, in another rendering.

    Args:
        split: "train" or "validation".
        index: from 0.
        seed: seed of the dataset, in [0, 2**64).
        events: "default", or "new": each clip has at least one event that no clip of the default set has.

    Raises:
        ValueError: the split or event set is unknown, or the index or seed is out of range.
    """
    if events not in EVENT_SETS:
        raise ValueError(f"events is {events!r}; choose 'default' or 'new'")
    if split not in SPLIT_STREAMS[events]:
        raise ValueError(f"split is {split!r}; choose 'train' or 'validation'")
    for name, value in (("index", index), ("seed", seed)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} is {value}; it must be in [0, 2**64)")
    rng = generator(seed, index, SPLIT_STREAMS[events][split])
    order = validation_order(seed, events) if split == "validation" else ()
    scene = draw_scene(order[index % len(order)] if order else draw_training(rng, events), rng)
    name = split if events == "default" else f"{events}-{split}"
    return SyntheticClip(f"synth-{name}-{index:06d}", write_captions(scene, rng), scene, seed, index, split, events)


def iter_synthetic(split: Split, count: int, seed: int, events: EventSet = "default") -> Iterator[SyntheticClip]:
    """The first `count` clips of a split; see `synthetic_clip`.

    Raises:
        ValueError: as in `synthetic_clip`, or the count is negative; raised before the first clip.
    """
    if count < 0:
        raise ValueError(f"count is {count}; it must not be negative")
    synthetic_clip(split, 0, seed, events)
    return (synthetic_clip(split, index, seed, events) for index in range(count))
