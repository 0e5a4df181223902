"""Sound event: how it is rendered, and the words that describe it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slap_fast.synthetic.dsp import Audio


@dataclass(frozen=True)
class Voice:
    """Random parameters drawn once per event and clip, so that all its strikes sound like the same source.

    Attributes:
        pitch: factor for all frequencies.
        rate: factor for the speed of repetition and modulation.
        brightness: in [-1, 1]; tilts the spectrum down or up.
    """

    pitch: float
    rate: float
    brightness: float


@dataclass(frozen=True)
class Noun:
    """A noun for a sound. `article` is False for mass nouns and plurals."""

    text: str
    article: bool = False
    plural: bool = False


@dataclass(frozen=True)
class Wording:
    """Subject and verb forms for a sound: "a dog", "barks", "barking"."""

    subject: str
    finite: str
    gerund: str
    plural: bool = False


@dataclass(frozen=True)
class Event:
    """A sound event: either a series of strikes (`strike`) or a continuous sound of any duration (`texture`).

    Attributes:
        name: identifier.
        noun: noun for the continuing sound ("barking", "a siren").
        wordings: clauses for the sound.
        strike: renders one strike, at most `length` seconds.
        texture: renders a given number of samples.
        length: seconds of a strike; for a texture, the shortest recognizable duration.
        interval: minimum and maximum seconds from one strike to the next.
        unit: singular and plural of one strike ("bark", "barks"), if strikes can be counted.
        steady: whether its loudness is constant, so that it can grow or fade.
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
        """Whether its strikes can be counted ("three times")."""
        return bool(self.unit[0])
