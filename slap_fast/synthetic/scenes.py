"""Scenes: timing, counts and loudness of the events of a clip. `rendering` converts a scene to samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from slap_fast.synthetic.combinations import Combination, Structure
from slap_fast.synthetic.event import Event, Voice
from slap_fast.synthetic.events import ALL_EVENTS

Loudness = Literal["normal", "faint", "loud", "rising", "falling"]

MAX_SECONDS = 20.0
MAX_COUNT = 5
MAX_COUNTED_SECONDS = 6.0  # so that three counted tracks fit into the longest clip
NOISY_DB = -42.0  # from this level on, captions may mention the background noise
BACKGROUND_DB = -4.0  # level of the background event in an overlap
_PART_SCALE = {1: 1.0, 2: 0.55, 3: 0.4}
_GAIN_DB: dict[Loudness, float] = {"normal": 0.0, "faint": -17.0, "loud": 7.5, "rising": 6.0, "falling": 6.0}


@dataclass(frozen=True)
class Track:
    """One event's part of a scene.

    Attributes:
        event: name of the event.
        onset, duration: seconds.
        strikes: start of each strike in seconds after `onset`; empty for a texture.
        voice: random parameters of this source.
        gain_db: level relative to normal (dB); for a rising or falling loudness, the level of the loud end.
        loudness: how captions may describe the level.
        count: the number of strikes if captions may mention it, else None.
    """

    event: str
    onset: float
    duration: float
    strikes: tuple[float, ...]
    voice: Voice
    gain_db: float
    loudness: Loudness = "normal"
    count: int | None = None

    @property
    def end(self) -> float:
        """End of the track in seconds."""
        return self.onset + self.duration


@dataclass(frozen=True)
class Scene:
    """A clip before rendering. Tracks of a sequence are in order; in an overlap the second is the background.

    Attributes:
        structure: how the tracks are combined.
        tracks: one to three.
        duration: seconds, 1 to 20.
        noise_db: level of the background noise (dB of full scale).
    """

    structure: Structure
    tracks: tuple[Track, ...]
    duration: float
    noise_db: float

    @property
    def noisy(self) -> bool:
        """Whether captions may mention the background noise."""
        return self.noise_db >= NOISY_DB


def draw_scene(combination: Combination, rng: np.random.Generator) -> Scene:
    """Draws the order, counts, loudness, timing, voices and noise for a combination."""
    events = [ALL_EVENTS[combination.events[i]] for i in rng.permutation(len(combination.events))]
    structure = combination.structure
    if len(events) == 1:
        tracks = [_draw_solo(events[0], structure, rng)]
    elif structure == "sequence":
        tracks = _in_sequence([_draw_track(event, rng, parts=len(events)) for event in events], rng)
    else:
        # The background must be continuous: a texture, or a long series of strikes, never a counted few.
        events[:2] = sorted(events[:2], key=lambda event: event.strike is None)
        parts = len(events) - 1
        foreground = _draw_track(events[0], rng, parts=parts, audible=True)
        tracks = _overlapping(foreground, _draw_track(events[1], rng, parts=parts, plain=True), rng)
        if structure == "overlap_then_sequence":
            tracks += _in_sequence([_draw_track(events[2], rng, parts=parts)], rng, start=tracks[1].end)
    lead = rng.uniform(0.0, 0.15)
    tracks = [replace(track, onset=track.onset + lead) for track in tracks]
    duration = max(1.0, max(track.end for track in tracks) + rng.uniform(0.0, 0.15))
    quiet = any(track.loudness in ("faint", "rising", "falling") for track in tracks)
    noise_db = rng.uniform(-75.0, -58.0 if quiet else -36.0)
    return Scene(structure, tuple(tracks), duration, noise_db)


def _draw_seconds(event: Event, rng: np.random.Generator, parts: int) -> float:
    """Duration of a track: mostly short, with a long tail; bounded so that `parts` tracks fit one after another."""
    long = rng.random() < 0.04
    seconds = rng.uniform(10.0, 19.6) if long else 1.0 + rng.gamma(1.6, 1.6)
    return float(np.clip(seconds * _PART_SCALE[parts], event.length, (MAX_SECONDS - 0.4) / parts - 0.3))


def _draw_voice(rng: np.random.Generator) -> Voice:
    pitch, rate = np.exp(rng.uniform(-0.14, 0.14, 2))
    return Voice(float(pitch), float(rate), rng.uniform(-1.0, 1.0))


def _draw_gain_db(rng: np.random.Generator) -> float:
    return rng.uniform(-2.5, 1.5)


def _draw_solo(event: Event, structure: Structure, rng: np.random.Generator) -> Track:
    if structure == "repetition":
        return _counted(event, rng)
    track = _draw_track(event, rng, plain=True)
    if structure in ("faint", "loud"):
        return _at_loudness(track, structure)
    if structure in ("rising", "falling"):
        return _at_loudness(_lasting(track, max(track.duration, 2.5), rng), structure)
    return track


def _draw_track(
    event: Event, rng: np.random.Generator, *, parts: int = 1, plain: bool = False, audible: bool = False
) -> Track:
    """A track in a scene of `parts`; unless `plain`, it may be counted, loud or (unless `audible`) faint."""
    special = 1.0 if plain else rng.random()
    if special < 0.16 and event.countable:
        return _counted(event, rng)
    track = Track(event.name, 0.0, 0.0, (), _draw_voice(rng), _draw_gain_db(rng))
    track = _lasting(track, _draw_seconds(event, rng, parts), rng)
    if 0.16 <= special < 0.23:
        return _at_loudness(track, "loud")
    return _at_loudness(track, "faint") if 0.23 <= special < 0.30 and not audible else track


def _at_loudness(track: Track, loudness: Loudness) -> Track:
    return replace(track, loudness=loudness, gain_db=_GAIN_DB[loudness])


def _lasting(track: Track, duration: float, rng: np.random.Generator) -> Track:
    """The track extended to `duration` seconds, with as many complete strikes as fit."""
    event = ALL_EVENTS[track.event]
    strikes = [0.0] if event.strike else []
    while strikes and (following := strikes[-1] + _draw_interval(event, track.voice, rng)) + event.length <= duration:
        strikes.append(following)
    return replace(track, duration=duration, strikes=tuple(strikes))


def _draw_interval(event: Event, voice: Voice, rng: np.random.Generator) -> float:
    return rng.uniform(*event.interval) / voice.rate


def _counted(event: Event, rng: np.random.Generator) -> Track:
    """A track with an exact number of nearly evenly spaced strikes."""
    voice = _draw_voice(rng)
    interval = _draw_interval(event, voice, rng)
    max_count = min(MAX_COUNT, 1 + int((MAX_COUNTED_SECONDS - event.length) / (1.1 * interval)))
    count = int(rng.integers(1, max_count + 1))
    strikes = tuple(float(i * interval * rng.uniform(1.0, 1.05)) for i in range(count))
    duration = strikes[-1] + event.length
    return Track(event.name, 0.0, duration, strikes, voice, _draw_gain_db(rng), count=count)


def _in_sequence(tracks: Sequence[Track], rng: np.random.Generator, start: float = 0.0) -> list[Track]:
    """Places the tracks one after another with short gaps, from `start` seconds on."""
    placed: list[Track] = []
    for track in tracks:
        onset = start + rng.uniform(0.05, 0.3) if start else 0.0
        placed.append(replace(track, onset=onset))
        start = placed[-1].end
    return placed


def _overlapping(foreground: Track, background: Track, rng: np.random.Generator) -> list[Track]:
    """Places the foreground within the background, which is a little quieter and at least as long."""
    total = max(foreground.duration, background.duration, 1.8)
    if foreground.count is None:
        foreground = _lasting(foreground, max(foreground.duration, total * rng.uniform(0.7, 0.9)), rng)
    start = rng.uniform(0.0, total - foreground.duration)
    background = replace(_lasting(background, total, rng), gain_db=background.gain_db + BACKGROUND_DB)
    return [replace(foreground, onset=start), background]
