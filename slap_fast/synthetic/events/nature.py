"""Weather and water."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import (
    SAMPLE_RATE,
    Audio,
    band_noise,
    convolve,
    curve,
    decay,
    impulses,
    oscillate,
    samples,
    scatter,
    wander,
)
from slap_fast.synthetic.event import Event, Noun, Voice, Wording


def _rain(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    splash = samples(0.012)
    response = band_noise(rng, splash, 2_000, 7_500) * decay(splash, 0.003)
    drops = convolve(impulses(rng, n, 160.0 * voice.rate), response)
    return 0.1 * band_noise(rng, n, 900 * voice.pitch, 7_000, order=2) + 0.4 * drops


def _thunder(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(1.5, 2.0))
    crack = samples(0.25)
    rumble = band_noise(rng, n, 60 * voice.pitch, 280 * voice.pitch, tilt=-0.5) * wander(rng, n, 9.0, 0.25, 1.0)
    rumble *= curve(n, (0.0, 0.0), (0.05, 1.0), (0.35, 0.65), (1.0, 0.0))
    rumble[:crack] += 0.8 * band_noise(rng, crack, 150, 2_500, tilt=-0.5) * decay(crack, 0.06)
    return rumble


def _wind(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    gust = wander(rng, n, 1.2 * voice.rate, 0.0, 1.0)
    low = band_noise(rng, n, 180 * voice.pitch, 420 * voice.pitch)
    high = band_noise(rng, n, 420 * voice.pitch, 950 * voice.pitch)
    return (0.4 + 0.6 * gust) * (low * (1 - gust) + high * gust)


def _bubble(rng: np.random.Generator, pitch: float) -> Audio:
    n = samples(rng.uniform(0.03, 0.06))
    start = rng.uniform(450.0, 1_100.0) * pitch
    return oscillate(curve(n, (0.0, start), (1.0, 1.5 * start)), n) * curve(n, (0.0, 0.0), (0.15, 1.0), (1.0, 0.0))


def _stream(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    grains = [_bubble(rng, voice.pitch) for _ in range(16)]
    onsets = np.sort(rng.integers(0, n, max(1, int(38.0 * voice.rate * n / SAMPLE_RATE))))
    gains = rng.uniform(0.3, 1.0, len(onsets)).astype(np.float32)
    return scatter(grains, onsets, gains, n) + 0.02 * band_noise(rng, n, 500, 2_000)


def _drip(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(0.14)
    start = 640.0 * voice.pitch * rng.uniform(0.94, 1.06)
    drop = oscillate(curve(n, (0.0, start), (0.35, 1.9 * start), (1.0, 2.1 * start)), n) * decay(n, 0.03)
    return drop * curve(n, (0.0, 0.0), (0.03, 1.0), (1.0, 1.0))


NATURE = (
    Event(
        "rain",
        Noun("rain"),
        (Wording("rain", "falls", "falling"), Wording("rain", "pours", "pouring")),
        texture=_rain,
    ),
    Event(
        "thunder",
        Noun("thunder"),
        (Wording("thunder", "rumbles", "rumbling"), Wording("thunder", "rolls", "rolling")),
        strike=_thunder,
        length=2.0,
        interval=(1.7, 2.2),
        unit=("clap of thunder", "claps of thunder"),
        steady=False,
    ),
    Event(
        "wind",
        Noun("wind"),
        (Wording("the wind", "blows", "blowing"), Wording("the wind", "howls", "howling")),
        texture=_wind,
        length=1.2,
        steady=False,
    ),
    Event(
        "stream",
        Noun("stream", article=True),
        (Wording("a stream", "bubbles", "bubbling"), Wording("a brook", "bubbles", "bubbling")),
        texture=_stream,
    ),
    Event(
        "drip",
        Noun("dripping water"),
        (Wording("water", "drips", "dripping"), Wording("a tap", "drips", "dripping")),
        strike=_drip,
        length=0.14,
        interval=(0.4, 0.8),
        unit=("drop of water", "drops of water"),
    ),
)
