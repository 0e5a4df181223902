"""What a sound event is: how it sounds, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slap_fast.synthetic.dsp import Audio


@dataclass(frozen=True)
class Voice:
    """What is drawn once for an event in a clip, so that all its strikes come from one source.

    Attributes:
        pitch: multiplies every frequency.
        rate: multiplies the speed of repetition and modulation.
        brightness: in [-1, 1]; tilts the spectrum down or up.
    """

    pitch: float
    rate: float
    brightness: float


@dataclass(frozen=True)
class Noun:
    """A name for a sound. Without `article` it takes none, as mass nouns and plurals do."""

    text: str
    article: bool = False
    plural: bool = False


@dataclass(frozen=True)
class Wording:
    """Who makes the sound and what it does: "a dog", "barks", "barking"."""

    subject: str
    finite: str
    gerund: str
    plural: bool = False


@dataclass(frozen=True)
class Event:
    """A sound event: either a series of a `strike`, or a `texture`, which goes on for any duration.

    Attributes:
        name: identifier.
        noun: the sound as a thing that goes on ("barking", "a siren").
        wordings: clauses for it.
        strike: renders one strike of its own length, at most `length` seconds.
        texture: renders a given number of samples.
        length: seconds of a strike; of a texture, the shortest duration that lets it be recognised.
        interval: least and most seconds from one strike to the next.
        unit: singular and plural of one strike ("bark", "barks"), where one would count them.
        steady: its loudness has no shape of its own, so that it can grow or fade.
    """

    name: str
    noun: Noun
    wordings: tuple[Wording, ...]
    strike: Callable[[Voice, np.random.Generator], Audio] | None = None
    texture: Callable[[Voice, np.random.Generator, int], Audio] | None = None
    length: float = 0.9
    interval: tuple[float, float] = (0.0, 0.0)
    unit: tuple[str, str] = ("", "")
    steady: bool = True

    def __post_init__(self) -> None:
        if (self.strike is None) == (self.texture is None):
            raise ValueError(f"event {self.name!r} needs either a strike or a texture")

    @property
    def countable(self) -> bool:
        """Whether "three times" makes sense of it."""
        return bool(self.unit[0])
