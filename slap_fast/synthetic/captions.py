"""Captions of a scene: true and grammatical English, each with a different structure."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.event import Event, Wording
from slap_fast.synthetic.events import ALL_EVENTS
from slap_fast.synthetic.scenes import Scene, Track

TIMES = {1: "once", 2: "twice", 3: "three times", 4: "four times", 5: "five times"}
NUMBERS = {1: "a single", 2: "two", 3: "three", 4: "four", 5: "five"}
ADJECTIVES = {"faint": ("faint", "quiet", "distant"), "loud": ("loud", "very loud")}
ADVERBS = {
    "faint": ("faintly", "quietly", "in the distance"),
    "loud": ("loudly", "very loudly"),
    "rising": ("louder and louder",),
    "falling": ("more and more quietly",),
}
PARTICIPLES = {"rising": "growing louder", "falling": "fading away"}
NOISE = ("with background noise", "with noise in the background", "in a noisy place")

_SINGLE = (
    "{0:clause}",
    "{0:gerund}",
    "{0:sound}",
    "{0:noun}",
    "{0:progressive}",
    "{0:noun} can be heard",
    "a recording of {0:gerund}",
)
_SEQUENCES = {
    2: (
        "{0:clause}, then {1:clause}",
        "{0:gerund} followed by {1:gerund}",
        "{0:noun} followed by {1:noun}",
        "first {0:clause}, and then {1:clause}",
        "{0:clause} before {1:clause}",
        "{0:sound}, and then {1:gerund}",
        "after {0:sound}, {1:clause}",
        "{1:clause} after {0:noun}",
    ),
    3: (
        "{0:clause}, then {1:clause}, then {2:clause}",
        "{0:gerund} followed by {1:gerund} and then {2:gerund}",
        "first {0:clause}, next {1:clause}, and finally {2:clause}",
        "{0:noun}, then {1:noun}, and finally {2:noun}",
        "after {0:noun}, {1:clause}, and then {2:clause}",
        "{0:sound}, followed by {1:noun} and then {2:noun}",
    ),
}
_OVERLAP = (
    "{0:clause} while {1:clause}",
    "{0:clause} while {1:progressive}",
    "{0:gerund} as {1:clause}",
    "{0:gerund} with {1:noun} in the background",
    "{0:clause} and {1:clause} at the same time",
    "{0:noun} together with {1:noun}",
    "while {1:progressive}, {0:clause}",
    "{0:noun} over {1:sound}",
)
_OVERLAP_THEN_SEQUENCE = (
    "{0:clause} while {1:clause}, then {2:clause}",
    "{0:gerund} as {1:clause}, followed by {2:noun}",
    "{0:noun} with {1:noun} in the background, and then {2:gerund}",
    "first {0:clause} while {1:progressive}, and then {2:clause}",
    "{0:noun} together with {1:noun}, followed by {2:noun}",
    "after {0:noun} over {1:sound}, {2:clause}",
)


def write_captions(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Three to five distinct captions, lower case, without a period."""
    templates = _templates(scene)
    phrases = [_Phrase(track, rng) for track in scene.tracks]
    chosen = rng.permutation(len(templates))[: rng.integers(3, 6)]
    captions = [templates[i].format(*phrases) for i in chosen]
    if scene.noisy:
        noted = int(rng.integers(len(captions)))
        captions[noted] += f", {_pick(NOISE, rng)}"
    return tuple(captions)


def _templates(scene: Scene) -> tuple[str, ...]:
    if scene.structure == "sequence":
        return _SEQUENCES[len(scene.tracks)]
    if scene.structure == "overlap":
        return _OVERLAP
    return _OVERLAP_THEN_SEQUENCE if scene.structure == "overlap_then_sequence" else _SINGLE


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]


def _indefinite(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


class _Phrase:
    """A track in words. The format specification selects the form: clause, progressive, gerund, noun or sound."""

    def __init__(self, track: Track, rng: np.random.Generator) -> None:
        self.track = track
        self.event: Event = ALL_EVENTS[track.event]
        self.rng = rng

    def __format__(self, form: str) -> str:
        wording = self.event.wordings[self.rng.integers(len(self.event.wordings))]
        match form:
            case "clause":
                return self._clause(wording)
            case "progressive":
                verb = "are" if wording.plural else "is"
                return " ".join(filter(None, (wording.subject, verb, wording.gerund, self._manner())))
            case "gerund":
                return self._gerund(wording)
            case "noun":
                return self._noun()
            case "sound":
                return self._sound(wording)
        raise ValueError(f"unknown form {form!r} in a caption template")

    def _manner(self) -> str:
        """The adverbial after the verb."""
        if self.track.count is not None:
            return TIMES[self.track.count]
        return "" if self.track.loudness == "normal" else _pick(ADVERBS[self.track.loudness], self.rng)

    def _clause(self, wording: Wording) -> str:
        if self.track.loudness in PARTICIPLES and self.rng.random() < 0.5:
            change = "grows louder" if self.track.loudness == "rising" else "fades away"
            return f"the sound of {wording.subject} {wording.gerund} {change}"
        return " ".join(filter(None, (wording.subject, wording.finite, self._manner())))

    def _gerund(self, wording: Wording) -> str:
        return " ".join(filter(None, (wording.subject, wording.gerund, self._manner())))

    def _noun(self) -> str:
        noun, loudness = self.event.noun, self.track.loudness
        if self.track.count is not None:
            return f"{NUMBERS[self.track.count]} {self.event.unit[self.track.count > 1]}"
        text = f"{_pick(ADJECTIVES[loudness], self.rng)} {noun.text}" if loudness in ADJECTIVES else noun.text
        phrase = _indefinite(text) if noun.article else text
        return f"{phrase} {PARTICIPLES[loudness]}" if loudness in PARTICIPLES else phrase

    def _sound(self, wording: Wording) -> str:
        if self.track.loudness in ADJECTIVES:
            return f"the {_pick(ADJECTIVES[self.track.loudness], self.rng)} sound of {wording.subject} {wording.gerund}"
        return f"the sound of {self._gerund(wording)}"
