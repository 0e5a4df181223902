"""Events that the default set does not have: the new classes of `--events new`, for fine-tuning and transfer."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import (
    SAMPLE_RATE,
    Audio,
    band_noise,
    convolve,
    curve,
    decay,
    fade,
    half_wave,
    impulses,
    modes,
    oscillate,
    samples,
    vowel,
    wander,
    wavetable,
)
from slap_fast.synthetic.event import Event, Noun, Voice, Wording

_THROAT = vowel(120.0, ((420.0, 130.0, 1.0), (850.0, 170.0, 0.5), (2_300.0, 300.0, 0.12)), highest=3_500.0)
_CROW = vowel(750.0, ((1_500.0, 350.0, 1.0), (2_900.0, 500.0, 0.7)))
_BLARE = wavetable([0.5, 0.8, 1.0, 0.9, 0.75, 0.55, 0.4, 0.3, 0.2, 0.12])


def _moo(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(1.1, 1.4))
    pitch = 118.0 * voice.pitch * curve(n, (0.0, 0.86), (0.3, 1.08), (1.0, 0.82))
    return fade(oscillate(pitch, n, _THROAT) * curve(n, (0.0, 0.4), (0.35, 1.0), (1.0, 0.6)), 0.12, 0.2)


def _crow(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(1.2, 1.5))
    contour = curve(n, (0.0, 0.7), (0.18, 1.05), (0.22, 0.8), (0.45, 1.2), (0.8, 1.1), (1.0, 0.6))
    syllables = curve(n, (0.0, 0.8), (0.17, 1.0), (0.21, 0.05), (0.26, 1.0), (0.4, 0.6), (0.45, 1.0), (1.0, 0.7))
    return fade(oscillate(760.0 * voice.pitch * contour, n, _CROW) * syllables, 0.03, 0.15)


def _waves(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    phase = int(rng.integers(0, 4 * SAMPLE_RATE))
    swell = half_wave(0.28 * voice.rate, n + phase)[phase:]
    surf = band_noise(rng, n, 300, 5_000, tilt=-0.4, order=2)
    return surf * (0.15 + swell * swell) + 0.4 * band_noise(rng, n, 60, 300, order=2)


def _fire(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    crackle = convolve(impulses(rng, n, 22.0 * voice.rate), band_noise(rng, 400, 900, 6_500) * decay(400, 0.004))
    roar = band_noise(rng, n, 50, 350, tilt=-0.5, order=2) * wander(rng, n, 3.0, 0.05, 0.12)
    return crackle + roar


def _ding_dong(voice: Voice, rng: np.random.Generator) -> Audio:
    total = np.zeros(samples(1.5), dtype=np.float32)
    for onset, note in ((0.0, 659.0), (rng.uniform(0.42, 0.5), 523.0)):
        start = samples(onset) if onset else 0
        partials = [(note * voice.pitch, 0.35, 1.0), (2.0 * note * voice.pitch, 0.2, 0.35)]
        total[start:] += modes(len(total) - start, [*partials, (3.01 * note * voice.pitch, 0.08, 0.2)])
    return fade(total, 0.003, 0.2)


def _hammer(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.22, 0.28))
    anvil = [(1_720.0, 0.05, 1.0), (2_890.0, 0.04, 0.8), (4_450.0, 0.03, 0.7), (6_300.0, 0.015, 0.5)]
    ring = modes(n, [(frequency * voice.pitch, seconds, gain) for frequency, seconds, gain in anvil])
    return fade(ring + 0.5 * band_noise(rng, n, 150, 1_200) * decay(n, 0.012), 0.001, 0.04)


def _trumpet(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(rng.uniform(0.55, 0.7))
    vibrato = 1.0 + 0.006 * oscillate(5.5 * voice.rate, n)
    swell = curve(n, (0.0, 0.0), (0.12, 1.0), (0.8, 0.9), (1.0, 0.4))
    return fade(oscillate(494.0 * voice.pitch * vibrato, n, _BLARE) * swell, 0.02, 0.06)


def _train(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    rate = 3.6 * voice.rate
    chuff = half_wave(rate, n) ** 3 * (0.7 + 0.3 * oscillate(rate / 4.0, n))
    rails = 0.25 * band_noise(rng, n, 80, 500, order=2) * (0.6 + 0.4 * half_wave(2.0 * rate, n))
    return band_noise(rng, n, 500, 3_500, tilt=-0.3, order=2) * chuff + rails


UNHEARD = (
    Event(
        "cow",
        Noun("mooing"),
        (Wording("a cow", "moos", "mooing"), Wording("a bull", "lows", "lowing")),
        strike=_moo,
        length=1.4,
        interval=(1.7, 2.3),
        unit=("moo", "moos"),
    ),
    Event(
        "rooster",
        Noun("crowing"),
        (Wording("a rooster", "crows", "crowing"), Wording("a cockerel", "crows", "crowing")),
        strike=_crow,
        length=1.5,
        interval=(1.8, 2.4),
        unit=("crow", "crows"),
    ),
    Event(
        "sea",
        Noun("surf"),
        (Wording("waves", "break", "breaking", plural=True), Wording("the sea", "surges", "surging")),
        texture=_waves,
        length=2.5,
        steady=False,
    ),
    Event(
        "fire",
        Noun("crackling fire", article=True),
        (Wording("a fire", "crackles", "crackling"), Wording("a campfire", "burns", "burning")),
        texture=_fire,
        length=1.2,
    ),
    Event(
        "doorbell",
        Noun("doorbell", article=True),
        (Wording("a doorbell", "chimes", "chiming"), Wording("a door chime", "sounds", "sounding")),
        strike=_ding_dong,
        length=1.5,
        interval=(1.7, 2.2),
        unit=("door chime", "door chimes"),
    ),
    Event(
        "hammer",
        Noun("hammering"),
        (Wording("a hammer", "strikes", "striking"), Wording("a blacksmith", "hammers", "hammering")),
        strike=_hammer,
        length=0.28,
        interval=(0.45, 0.65),
        unit=("hammer blow", "hammer blows"),
    ),
    Event(
        "trumpet",
        Noun("trumpet", article=True),
        (Wording("a trumpet", "plays", "playing"), Wording("a trumpeter", "plays a note", "playing a note")),
        strike=_trumpet,
        length=0.7,
        interval=(0.85, 1.1),
        unit=("trumpet note", "trumpet notes"),
    ),
    Event(
        "train",
        Noun("train", article=True),
        (Wording("a train", "chuffs", "chuffing"), Wording("a locomotive", "puffs", "puffing")),
        texture=_train,
        length=1.4,
    ),
)
