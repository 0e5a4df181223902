"""Rendering: converts a scene to a waveform."""

from __future__ import annotations

import numpy as np

from slap_fast.synthetic.dsp import SAMPLE_RATE, Audio, band_noise, fade, samples
from slap_fast.synthetic.events import ALL_EVENTS
from slap_fast.synthetic.scenes import Scene, Track
from slap_fast.synthetic.seeding import generator

PEAK = 0.95
_RAMP_DB = 26.0
_LEVEL_SECONDS = 0.05
_LEVEL = 0.11  # RMS of the loudest `_LEVEL_SECONDS` of an event at 0 dB
_EVENT_PEAK = 0.38  # maximum peak of an event at 0 dB, so that one at +7.5 dB does not clip


def render(scene: Scene, seed: int, clip: int, stream: int) -> Audio:
    """Render a scene.

    Args:
        scene: the scene to render.
        seed, clip, stream: key of all random choices, see `seeding.generator`.

    Returns:
        `[S]` float32 at 16 kHz, peak at most 0.95.
    """
    n = samples(scene.duration)
    noise = band_noise(generator(seed, clip, stream, 1), n, 60, 6_000, tilt=-0.4, order=2)
    mix = noise * np.float32(10.0 ** (scene.noise_db / 20.0))
    for part, track in enumerate(scene.tracks, start=2):
        start = int(track.onset * SAMPLE_RATE)
        sound = _render_track(track, generator(seed, clip, stream, part))[: n - start]
        mix[start : start + len(sound)] += sound
    peak = float(np.abs(mix).max())
    return mix * np.float32(PEAK / peak) if peak > PEAK else mix


def _render_track(track: Track, rng: np.random.Generator) -> Audio:
    event = ALL_EVENTS[track.event]
    n = samples(track.duration)
    if event.texture is not None:
        sound = event.texture(track.voice, rng, n)
    elif event.strike is not None:
        sound = np.zeros(n, dtype=np.float32)
        variants = [event.strike(track.voice, rng) for _ in range(min(3, len(track.strikes)))]
        for i, strike in enumerate(track.strikes):
            start = int(strike * SAMPLE_RATE)
            part = variants[i % len(variants)][: n - start]
            sound[start : start + len(part)] += np.float32(rng.uniform(0.8, 1.0)) * part
    # A two-tap filter tilts the spectrum enough for two sources of the same event to sound different.
    sound[1:] += np.float32(0.3 * -track.voice.brightness) * sound[:-1]
    sound = fade(sound, 0.002 if event.strike else 0.04, 0.05)
    sound *= _gain(sound) * np.float32(10.0 ** (track.gain_db / 20.0))
    if track.loudness in ("rising", "falling"):
        ramp = np.linspace(-_RAMP_DB, 0.0, n, dtype=np.float32)
        sound *= np.float32(10.0) ** ((ramp if track.loudness == "rising" else ramp[::-1]) / np.float32(20.0))
    return sound


def _gain(sound: Audio) -> np.float32:
    """The gain that brings an event to 0 dB, by its loudest moment: a single knock becomes as loud as steady rain."""
    block = samples(_LEVEL_SECONDS)
    whole = len(sound) // block * block
    loudest = np.sqrt(np.square(sound[:whole]).reshape(-1, block).mean(axis=1).max()) if whole else 0.0
    return np.float32(min(_LEVEL / max(loudest, 1e-9), _EVENT_PEAK / max(float(np.abs(sound).max()), 1e-9)))
