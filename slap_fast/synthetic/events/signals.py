"""Signal sounds: sirens, horns, bells, beeps."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import (
    SAMPLE_RATE,
    Audio,
    band_noise,
    curve,
    decay,
    fade,
    half_wave,
    modes,
    oscillate,
    samples,
    wavetable,
)
from slap_fast.synthetic.event import Event, Noun, Voice, Wording

_REED = wavetable([1.0, 0.55, 0.4, 0.25, 0.15])
_SQUARE = wavetable([1.0, 0.0, 0.33])
_BRASS = wavetable([0.7, 1.0, 0.9, 0.7, 0.6, 0.45, 0.35, 0.25, 0.2, 0.15])


def _siren(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    sweep = oscillate(0.75 * voice.rate, n + 16_000)[(start := int(rng.integers(0, 16_000))) : start + n]
    return oscillate((950.0 + 380.0 * sweep) * voice.pitch, n, _REED)


def _beep(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.09, 0.11))
    return fade(oscillate(2_150.0 * voice.pitch, n, _SQUARE), 0.005, 0.01)


def _phone_ring(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.75, 0.9))
    clapper = 0.35 + 0.65 * half_wave(21.0 * voice.rate, n)
    partials = [(1_060.0, 1.0), (1_340.0, 0.9), (3_250.0, 0.4)]
    bells = [gain * oscillate(frequency * voice.pitch, n) for frequency, gain in partials]
    return fade(np.sum(bells, axis=0) * clapper, 0.01, 0.12)


def _honk(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.35, 0.5))
    pair = oscillate(370.0 * voice.pitch, n, _BRASS) + oscillate(466.0 * voice.pitch, n, _BRASS)
    return fade(pair, 0.02, 0.04)


def _toll(voice: Voice, rng: np.random.Generator) -> Audio:
    prime = 290.0 * voice.pitch
    ratios = ((0.5, 0.9, 0.5), (1.0, 0.8, 1.0), (1.19, 0.6, 0.8), (1.5, 0.45, 0.5), (2.0, 0.4, 0.7), (2.74, 0.25, 0.4))
    partials = [(prime * ratio, seconds * rng.uniform(0.9, 1.1), gain) for ratio, seconds, gain in ratios]
    strike = modes(samples(2.0), [*partials, (prime * 5.4, 0.06, 0.5)])
    return fade(strike, 0.002, 0.3)


def _whistle(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.45, 0.65))
    pea = oscillate(34.0 * voice.rate, n)
    tone = oscillate(2_900.0 * voice.pitch * (1.0 + 0.035 * pea), n) * (0.7 + 0.3 * pea)
    return fade(tone + 0.08 * band_noise(rng, n, 2_000, 5_000), 0.02, 0.03)


def _sonar_ping(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(1.1, 1.3))
    tone = oscillate(1_480.0 * voice.pitch, n) * curve(n, (0.0, 0.0), (0.015, 1.0), (1.0, 1.0))
    return fade(tone * (0.7 * decay(n, 0.12) + 0.3 * decay(n, 0.5)), 0.001, 0.2)


def _zap(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.22, 0.3))
    fall = 5_000.0 * voice.pitch * decay(n, n / SAMPLE_RATE / 3.0)
    return fade(oscillate(fall, n, _SQUARE) * curve(n, (0.0, 1.0), (1.0, 0.5)), 0.003, 0.03)


SIGNALS = (
    Event(
        "siren",
        Noun("siren", article=True),
        (Wording("a siren", "wails", "wailing"), Wording("an emergency siren", "sounds", "sounding")),
        texture=_siren,
        length=1.2,
    ),
    Event(
        "alarm",
        Noun("beeping"),
        (Wording("an alarm", "beeps", "beeping"), Wording("a timer", "beeps", "beeping")),
        strike=_beep,
        length=0.11,
        interval=(0.24, 0.34),
        unit=("beep", "beeps"),
    ),
    Event(
        "phone",
        Noun("ringing phone", article=True),
        (Wording("a phone", "rings", "ringing"), Wording("a telephone", "rings", "ringing")),
        strike=_phone_ring,
        length=0.9,
        interval=(1.2, 1.6),
        unit=("phone ring", "phone rings"),
    ),
    Event(
        "horn",
        Noun("car horn", article=True),
        (Wording("a car horn", "honks", "honking"), Wording("a car", "honks", "honking")),
        strike=_honk,
        length=0.5,
        interval=(0.6, 0.9),
        unit=("honk", "honks"),
    ),
    Event(
        "bell",
        Noun("church bell", article=True),
        (Wording("a bell", "tolls", "tolling"), Wording("a church bell", "rings", "ringing")),
        strike=_toll,
        length=2.0,
        interval=(1.1, 1.6),
        unit=("bell stroke", "bell strokes"),
    ),
    Event(
        "whistle",
        Noun("whistle", article=True),
        (Wording("a whistle", "blows", "blowing"), Wording("a referee", "blows a whistle", "blowing a whistle")),
        strike=_whistle,
        length=0.65,
        interval=(0.8, 1.1),
        unit=("whistle blast", "whistle blasts"),
    ),
    Event(
        "sonar",
        Noun("sonar", article=True),
        (Wording("a sonar", "pings", "pinging"), Wording("a submarine", "pings", "pinging")),
        strike=_sonar_ping,
        length=1.3,
        interval=(1.3, 1.8),
        unit=("sonar ping", "sonar pings"),
    ),
    Event(
        "laser",
        Noun("laser", article=True),
        (Wording("a laser", "zaps", "zapping"), Wording("a laser gun", "fires", "firing")),
        strike=_zap,
        length=0.3,
        interval=(0.4, 0.7),
        unit=("laser zap", "laser zaps"),
    ),
)
