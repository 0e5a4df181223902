"""Engines, vehicles and tools."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import (
    SAMPLE_RATE,
    Audio,
    band_noise,
    half_wave,
    oscillate,
    time_axis,
    vowel,
    wander,
    wavetable,
)
from slap_fast.synthetic.event import Event, Noun, Voice, Wording

_SPEED_OF_SOUND = 343.0  # m/s
_SPEED = 32.0  # m/s, of the motorbike
_HUM = wavetable([0.5, 1.0, 0.15, 0.6, 0.1, 0.4])


def _engine(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    firing = 27.0 * voice.rate
    table = vowel(firing, [(130 * voice.pitch, 45, 1.0), (260 * voice.pitch, 60, 0.6)], highest=700)
    speed = firing * wander(rng, n, 6.0, 0.96, 1.04)
    return oscillate(speed, n, table) + 0.03 * band_noise(rng, n, 150, 900)


def _helicopter(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    rotor = half_wave(13.0 * voice.rate, n)
    chop = rotor**4
    return (0.08 + chop) * band_noise(rng, n, 90, 1_400 * voice.pitch, tilt=-0.4, order=2)


def _motorbike(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    # The source moves on a straight line, closest at t = 0. The distance scales with the duration of the clip.
    seconds = n / SAMPLE_RATE
    t = time_axis(n) - np.float32(seconds * rng.uniform(0.42, 0.58))
    distance = 3.5 * seconds
    radius: Audio = np.sqrt(np.square(_SPEED * t) + np.float32(distance**2))
    doppler = 1.0 / (1.0 + _SPEED**2 * t / (radius * _SPEED_OF_SOUND))
    fundamental = 105.0 * voice.pitch
    table = vowel(fundamental, [(200, 150, 1.0), (700, 400, 0.6), (1_800, 900, 0.4)], highest=5_000)
    sound = oscillate(fundamental * doppler, n, table) + 0.06 * band_noise(rng, n, 300, 3_000)
    return sound * np.square(distance / radius)


def _sawing(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    stroke = (time_axis(n) * (2.6 * voice.rate) + np.float32(rng.random())) % 2.0
    push = np.sin(np.pi * (stroke % 1.0))
    teeth = 0.4 + 0.6 * half_wave(60.0 + 70.0 * push, n)
    rasp = band_noise(rng, n, 1_100 * voice.pitch, 3_600 * voice.pitch)
    return rasp * teeth * push**2 * np.where(stroke < 1.0, np.float32(1.0), np.float32(0.55))


def _steam(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    return band_noise(rng, n, 3_900 * voice.pitch, 7_600) * wander(rng, n, 8.0 * voice.rate, 0.85, 1.0)


def _hum(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    return oscillate(55.0 * voice.pitch, n, _HUM) + 0.004 * band_noise(rng, n, 100, 2_000)


MACHINES = (
    Event(
        "engine",
        Noun("engine", article=True),
        (Wording("an engine", "idles", "idling"), Wording("a truck engine", "runs", "running")),
        texture=_engine,
    ),
    Event(
        "helicopter",
        Noun("helicopter", article=True),
        (
            Wording("a helicopter", "hovers", "hovering"),
            Wording("a helicopter", "flies overhead", "flying overhead"),
        ),
        texture=_helicopter,
    ),
    Event(
        "motorbike",
        Noun("motorbike", article=True),
        (Wording("a motorbike", "passes by", "passing by"), Wording("a motorcycle", "drives past", "driving past")),
        texture=_motorbike,
        length=1.6,
        steady=False,
    ),
    Event(
        "saw",
        Noun("sawing"),
        (Wording("a saw", "cuts wood", "cutting wood"), Wording("someone", "saws wood", "sawing wood")),
        texture=_sawing,
        length=1.2,
    ),
    Event(
        "steam",
        Noun("steam"),
        (Wording("steam", "hisses", "hissing"), Wording("steam", "escapes", "escaping")),
        texture=_steam,
    ),
    Event(
        "hum",
        Noun("electric hum", article=True),
        (Wording("a transformer", "hums", "humming"), Wording("a fridge", "hums", "humming")),
        texture=_hum,
    ),
)
