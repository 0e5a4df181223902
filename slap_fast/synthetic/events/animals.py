"""Animal voices."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import (
    Audio,
    band_noise,
    curve,
    fade,
    half_wave,
    oscillate,
    samples,
    scatter,
    time_axis,
    vowel,
    wander,
)
from slap_fast.synthetic.event import Event, Noun, Voice, Wording


def _bark(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.17, 0.24))
    fundamental = 400.0 * voice.pitch * rng.uniform(0.96, 1.04)
    pitch = fundamental * curve(n, (0.0, 0.75), (0.25, 1.2), (1.0, 0.6))
    tone = oscillate(pitch, n, vowel(fundamental, [(750, 250, 1.0), (1500, 350, 0.6), (2900, 500, 0.2)], highest=5_500))
    breath = band_noise(rng, n, 500, 3_500)
    return (tone + 0.12 * breath) * curve(n, (0.0, 0.0), (0.06, 1.0), (0.5, 0.7), (1.0, 0.0))


def _meow(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.65, 0.85))
    fundamental = 620.0 * voice.pitch * rng.uniform(0.96, 1.04)
    pitch = fundamental * curve(n, (0.0, 0.75), (0.35, 1.2), (0.6, 1.15), (1.0, 0.65))
    closed = oscillate(pitch, n, vowel(fundamental, [(600, 300, 1.0), (2_400, 300, 0.3)], highest=5_000))
    opened = oscillate(pitch, n, vowel(fundamental, [(1_200, 400, 1.0), (2_800, 500, 0.7)], highest=5_500))
    mouth = curve(n, (0.0, 0.0), (0.4, 1.0), (1.0, 0.1))
    return (closed * (1 - mouth) + opened * mouth) * curve(n, (0.0, 0.0), (0.2, 0.8), (0.5, 1.0), (1.0, 0.0))


def _bird_chirp(voice: Voice, rng: np.random.Generator) -> Audio:
    notes = int(rng.integers(3, 6))
    note = samples(rng.uniform(0.05, 0.07))
    top = 5_200.0 * voice.pitch
    sweep = top * curve(note, (0.0, 0.62), (0.6, 1.0), (1.0, 0.8))
    grain = oscillate(sweep, note) * curve(note, (0.0, 0.0), (0.3, 1.0), (1.0, 0.0))
    onsets = np.arange(notes) * samples(rng.uniform(0.085, 0.1))
    gains = rng.uniform(0.7, 1.0, notes).astype(np.float32)
    return scatter([grain], onsets, gains, int(onsets[-1]) + note)


def _hoot(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.4, 0.55))
    pitch = 370.0 * voice.pitch * rng.uniform(0.97, 1.03) * curve(n, (0.0, 0.9), (0.3, 1.0), (1.0, 0.92))
    breath = band_noise(rng, n, 250, 600) * 0.04
    return (oscillate(pitch, n) + 0.06 * oscillate(2 * pitch, n) + breath) * curve(
        n, (0.0, 0.0), (0.25, 1.0), (0.6, 0.9), (1.0, 0.0)
    )


def _croak(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.3, 0.42))
    fundamental = 48.0 * voice.rate
    table = vowel(fundamental, [(560 * voice.pitch, 90, 1.0), (1_650 * voice.pitch, 130, 0.6)], highest=3_000)
    pitch = fundamental * curve(n, (0.0, 0.8), (1.0, 1.25))
    return oscillate(pitch, n, table) * curve(n, (0.0, 0.0), (0.15, 0.8), (0.8, 1.0), (1.0, 0.0))


def _cricket(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    t = time_axis(n)
    pulses = half_wave(32.0 * voice.rate, n)
    group = ((t * (2.4 * voice.rate) + rng.random()) % 1.0 < 0.55).astype(np.float32)
    carrier = oscillate(4_600.0 * voice.pitch, n)
    return carrier * (pulses**2) * group + 0.003 * band_noise(rng, n, 3_000, 6_000)


def _bee(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    fundamental = 215.0 * voice.pitch
    pitch = fundamental * wander(rng, n, 5.0 * voice.rate, 0.88, 1.12)
    table = vowel(fundamental, [(215, 200, 0.8), (700, 400, 0.7), (2_200, 900, 0.8)], highest=5_000)
    return oscillate(pitch, n, table) * wander(rng, n, 3.0 * voice.rate, 0.45, 1.0)


def _quack(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.2, 0.28))
    fundamental = 190.0 * voice.pitch * rng.uniform(0.97, 1.03)
    table = vowel(fundamental, [(1_150, 150, 0.8), (2_300, 200, 1.0), (3_600, 300, 0.7)], highest=6_500)
    pitch = fundamental * curve(n, (0.0, 1.1), (1.0, 0.85))
    return fade(oscillate(pitch, n, table) * curve(n, (0.0, 1.0), (1.0, 0.5)), 0.015, 0.05)


ANIMALS = (
    Event(
        "dog",
        Noun("barking"),
        (Wording("a dog", "barks", "barking"), Wording("a dog", "yaps", "yapping")),
        strike=_bark,
        length=0.25,
        interval=(0.35, 0.65),
        unit=("bark", "barks"),
    ),
    Event(
        "cat",
        Noun("meowing"),
        (Wording("a cat", "meows", "meowing"), Wording("a kitten", "meows", "meowing")),
        strike=_meow,
        length=0.85,
        interval=(1.0, 1.4),
        unit=("meow", "meows"),
    ),
    Event(
        "bird",
        Noun("birdsong"),
        (Wording("a bird", "chirps", "chirping"), Wording("a bird", "sings", "singing")),
        strike=_bird_chirp,
        length=0.5,
        interval=(0.75, 1.1),
        unit=("bird call", "bird calls"),
    ),
    Event(
        "owl",
        Noun("hooting"),
        (Wording("an owl", "hoots", "hooting"), Wording("an owl", "calls", "calling")),
        strike=_hoot,
        length=0.55,
        interval=(0.75, 1.1),
        unit=("hoot", "hoots"),
    ),
    Event(
        "frog",
        Noun("croaking"),
        (Wording("a frog", "croaks", "croaking"), Wording("a toad", "croaks", "croaking")),
        strike=_croak,
        length=0.42,
        interval=(0.6, 0.9),
        unit=("croak", "croaks"),
    ),
    Event(
        "duck",
        Noun("quacking"),
        (Wording("a duck", "quacks", "quacking"), Wording("a duck", "calls", "calling")),
        strike=_quack,
        length=0.28,
        interval=(0.4, 0.65),
        unit=("quack", "quacks"),
    ),
    Event(
        "cricket",
        Noun("cricket", article=True),
        (Wording("a cricket", "chirps", "chirping"), Wording("an insect", "trills", "trilling")),
        texture=_cricket,
        length=1.0,
    ),
    Event(
        "bee",
        Noun("buzzing"),
        (Wording("a bee", "buzzes", "buzzing"), Wording("a bee", "flies around", "flying around")),
        texture=_bee,
    ),
)
