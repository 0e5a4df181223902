"""Human activities, at home and on stage."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import (
    SAMPLE_RATE,
    Audio,
    band_noise,
    convolve,
    decay,
    fade,
    impulses,
    modes,
    regular_onsets,
    samples,
    scatter,
)
from slap_fast.synthetic.event import Event, Noun, Voice, Wording


def _footstep(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(0.16)
    heel = modes(n, [(105.0 * voice.pitch, 0.03, 1.0), (190.0 * voice.pitch, 0.02, 0.5)])
    sole = samples(0.03)  # touches down after the heel
    heel[sole:] += 0.1 * band_noise(rng, n - sole, 2_200, 5_200) * decay(n - sole, 0.03)
    return fade(heel, 0.001, 0.03)


def _knock(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(0.18)
    base = voice.pitch * rng.uniform(0.98, 1.02)
    wood = modes(
        n, [(330 * base, 0.035, 0.9), (560 * base, 0.028, 1.0), (940 * base, 0.018, 0.7), (1_500 * base, 0.01, 0.4)]
    )
    click = band_noise(rng, n, 800, 3_000) * decay(n, 0.004)
    return fade(wood + 0.3 * click, 0.001, 0.03)


def _clock(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    tick, tock = (
        modes(samples(0.06), [(ratio * voice.pitch, 0.005, 1.0), (1.62 * ratio * voice.pitch, 0.003, 0.8)])
        for ratio in (3_900.0, 3_100.0)
    )
    onsets = regular_onsets(rng, n, 0.42 / voice.rate, 0.01)
    return scatter([tick, tock], onsets, np.ones(len(onsets), dtype=np.float32), n)


def _typing(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    length = samples(0.05)
    keys = [
        band_noise(rng, length, 1_200 * voice.pitch, 4_200) * decay(length, 0.006)
        + modes(length, [(float(rng.uniform(230, 420)) * voice.pitch, 0.012, 1.6)])
        for _ in range(6)
    ]
    onsets = regular_onsets(rng, n, 0.115 / voice.rate, 0.9)
    typed = onsets[rng.random(len(onsets)) < 0.85] if len(onsets) > 4 else onsets
    return scatter(keys, typed, rng.uniform(0.4, 1.0, len(typed)).astype(np.float32), n)


def _applause(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    length = samples(0.025)
    total = np.zeros(n, dtype=np.float32)
    for center in (950.0, 1_500.0):
        clap = band_noise(rng, length, 0.75 * center * voice.pitch, 1.35 * center * voice.pitch) * decay(length, 0.006)
        total += convolve(impulses(rng, n, 60.0 * voice.rate), clap)
    return total


def _pluck(voice: Voice, rng: np.random.Generator) -> Audio:
    """Karplus-Strong, one period at a time: a sample is the mean of two neighbors in the previous period."""
    frequency = 150.0 * voice.pitch * float(rng.choice([1.0, 1.125, 1.25, 1.5]))
    period = round(SAMPLE_RATE / frequency)
    n = samples(0.9)
    string = rng.uniform(-1.0, 1.0, period).astype(np.float32)
    string -= string.mean()
    periods = [string]
    for _ in range(n // period):
        string = np.float32(0.4975) * (string + np.roll(string, 1))
        periods.append(string)
    return fade(np.concatenate(periods)[:n], 0.001, 0.15)


def _drum(voice: Voice, rng: np.random.Generator) -> Audio:
    n = samples(0.3)
    t = np.arange(n) / SAMPLE_RATE
    phase = 2 * np.pi * voice.pitch * (125.0 * t + 7.0 * (1.0 - np.exp(-t / 0.03)))
    skin = np.sin(phase).astype(np.float32) * decay(n, 0.07)
    snare = band_noise(rng, n, 700, 6_500) * decay(n, 0.045)
    return fade(skin + 0.3 * snare, 0.0005, 0.05)


def _organ(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    root = 131.0 * voice.pitch
    t = np.arange(n, dtype=np.float64) / SAMPLE_RATE
    third = 1.26 if rng.random() < 0.5 else 1.189
    total = np.zeros(n, dtype=np.float32)
    for note in (1.0, third, 1.498, 2.0):
        for stop, gain in ((1, 1.0), (2, 0.7), (4, 0.5), (8, 0.25)):
            cycles = root * note * stop * t + rng.random()
            total += np.float32(gain) * np.sin((2 * np.pi) * (cycles % 1.0).astype(np.float32))
    return total


def _music_box(voice: Voice, rng: np.random.Generator, n: int) -> Audio:
    notes = []
    for step in rng.permutation([0, 2, 4, 7, 9, 12])[:4]:
        tone = 1_050.0 * voice.pitch * 2.0 ** (float(step) / 12.0)
        notes.append(fade(modes(samples(0.55), [(tone, 0.13, 1.0), (2.98 * tone, 0.05, 0.35)]), 0.001, 0.05))
    onsets = regular_onsets(rng, n, 0.21 / voice.rate, 0.02)
    return scatter(notes, onsets, rng.uniform(0.7, 1.0, len(onsets)).astype(np.float32), n)


def _clink(voice: Voice, rng: np.random.Generator) -> Audio:
    tone = 3_300.0 * voice.pitch * rng.uniform(0.97, 1.03)
    return fade(
        modes(samples(0.45), [(tone, 0.11, 1.0), (1.53 * tone, 0.08, 0.8), (2.1 * tone, 0.05, 0.5)]), 0.0005, 0.1
    )


PEOPLE = (
    Event(
        "footsteps",
        Noun("footsteps", plural=True),
        (Wording("someone", "walks", "walking"), Wording("footsteps", "echo", "echoing", plural=True)),
        strike=_footstep,
        length=0.16,
        interval=(0.45, 0.6),
    ),
    Event(
        "knock",
        Noun("knocking"),
        (
            Wording("someone", "knocks on a door", "knocking on a door"),
            Wording("a person", "knocks at the door", "knocking at the door"),
        ),
        strike=_knock,
        length=0.18,
        interval=(0.24, 0.36),
        unit=("knock", "knocks"),
    ),
    Event(
        "clock",
        Noun("ticking clock", article=True),
        (Wording("a clock", "ticks", "ticking"), Wording("a watch", "ticks", "ticking")),
        texture=_clock,
        length=1.2,
    ),
    Event(
        "typing",
        Noun("typing"),
        (
            Wording("someone", "types on a keyboard", "typing on a keyboard"),
            Wording("a person", "types", "typing"),
        ),
        texture=_typing,
        length=1.0,
    ),
    Event(
        "applause",
        Noun("applause"),
        (Wording("a crowd", "applauds", "applauding"), Wording("people", "clap", "clapping", plural=True)),
        texture=_applause,
    ),
    Event(
        "glass",
        Noun("clinking glass"),
        (Wording("a glass", "clinks", "clinking"), Wording("a wine glass", "pings", "pinging")),
        strike=_clink,
        length=0.45,
        interval=(0.55, 0.9),
        unit=("clink of a glass", "clinks of a glass"),
    ),
    Event(
        "drum",
        Noun("drumming"),
        (Wording("a drum", "beats", "beating"), Wording("someone", "hits a drum", "hitting a drum")),
        strike=_drum,
        length=0.3,
        interval=(0.38, 0.6),
        unit=("drum beat", "drum beats"),
    ),
    Event(
        "guitar",
        Noun("guitar", article=True),
        (
            Wording("someone", "plucks a guitar", "plucking a guitar"),
            Wording("a guitar string", "is plucked", "being plucked"),
        ),
        strike=_pluck,
        length=0.9,
        interval=(0.6, 0.9),
        unit=("guitar note", "guitar notes"),
    ),
    Event(
        "organ",
        Noun("organ", article=True),
        (Wording("an organ", "plays a chord", "playing a chord"), Wording("a church organ", "plays", "playing")),
        texture=_organ,
    ),
    Event(
        "music_box",
        Noun("music box", article=True),
        (Wording("a music box", "plays", "playing"), Wording("a music box", "chimes", "chiming")),
        texture=_music_box,
        length=1.2,
    ),
)
