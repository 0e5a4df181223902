"""Signal processing for the synthetic events: oscillators, shaped noise, envelopes, resonances.

All signals are mono float32 at 16 kHz. Randomness comes only from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz
TABLE_SIZE = 4096

Audio = NDArray[np.float32]


def samples(seconds: float) -> int:
    """Whole samples in `seconds`, at least one."""
    return max(1, round(seconds * SAMPLE_RATE))


def time_axis(n: int) -> Audio:
    """Time of each of `n` samples in seconds."""
    return np.arange(n, dtype=np.float32) / np.float32(SAMPLE_RATE)


def curve(n: int, *knots: tuple[float, float]) -> Audio:
    """Piecewise linear curve through `(position in [0, 1], value)` knots, sampled at `n` points."""
    positions, values = zip(*knots, strict=True)
    return np.interp(np.linspace(0.0, 1.0, n), positions, values).astype(np.float32)


def decay(n: int, seconds: float) -> Audio:
    """Exponential decay with time constant `seconds`."""
    return np.exp(time_axis(n) * np.float32(-1.0 / seconds))


def wander(rng: np.random.Generator, n: int, rate: float, low: float, high: float) -> Audio:
    """Slow random curve in [low, high] that changes direction `rate` times per second."""
    knots = 3 + int(n * rate / SAMPLE_RATE)
    return np.interp(np.linspace(0.0, knots - 1.0, n), np.arange(knots), rng.uniform(low, high, knots)).astype(
        np.float32
    )


def wavetable(amplitudes: Sequence[float] | NDArray[np.float64]) -> Audio:
    """One period whose k-th harmonic has `amplitudes[k - 1]`, with peak 1."""
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : len(amplitudes) + 1] = -1j * np.asarray(amplitudes)
    table = np.fft.irfft(spectrum, TABLE_SIZE)
    return (table / np.abs(table).max()).astype(np.float32)


SINE = wavetable([1.0])


def vowel(fundamental: float, formants: Sequence[tuple[float, float, float]], *, highest: float = 7_000.0) -> Audio:
    """Wavetable of a harmonic source at `fundamental` Hz through `(center Hz, bandwidth Hz, gain)` resonances."""
    frequency = fundamental * np.arange(1, max(2, int(highest / fundamental)) + 1)
    gains = [gain / (1.0 + ((frequency - center) / bandwidth) ** 2) for center, bandwidth, gain in formants]
    return wavetable(np.sum(gains, axis=0))


def oscillate(frequency: np.ndarray | float, n: int, table: Audio = SINE) -> Audio:
    """Periodic signal of `n` samples that follows `frequency` (Hz, one value or `[n]`)."""
    step = np.asarray(frequency, dtype=np.float64) * (TABLE_SIZE / SAMPLE_RATE)
    phase = np.cumsum(step) if step.ndim else step * np.arange(n)
    return table[phase.astype(np.int64) & (TABLE_SIZE - 1)]


def half_wave(frequency: np.ndarray | float, n: int) -> Audio:
    """Positive half-waves of a sine: a train of smooth pulses at `frequency` Hz."""
    return np.maximum(oscillate(frequency, n), np.float32(0.0))


def modes(n: int, partials: Sequence[tuple[float, float, float]]) -> Audio:
    """Sum of damped sinusoids `(Hz, decay seconds, gain)`: the sound of a struck object."""
    total = np.zeros(n, dtype=np.float32)
    for frequency, seconds, gain in partials:
        audible = min(n, samples(7.0 * seconds))
        total[:audible] += np.float32(gain) * decay(audible, seconds) * oscillate(frequency, audible)
    return total


def fft_length(n: int) -> int:
    """A length of at least `n` with prime factors 2 and 3 only, which every FFT library handles fast."""
    power = 1 << max(0, n - 1).bit_length()
    return min(size for size in (power, power // 4 * 3, power // 8 * 9 if power >= 16 else power) if size >= n)


def band_noise(
    rng: np.random.Generator, n: int, low: float, high: float, *, tilt: float = 0.0, order: int = 4
) -> Audio:
    """Gaussian noise of unit power between `low` and `high` Hz.

    Args:
        n: samples.
        low, high: half-power edges in Hz.
        tilt: exponent of the amplitude over frequency; -0.5 is pink.
        order: steepness of both edges, as of a Butterworth filter; 1, 2 or 4.
    """
    size = fft_length(n)
    bins = size // 2 + 1
    frequency = np.arange(1, bins, dtype=np.float32) * np.float32(SAMPLE_RATE / size)
    # Bounded, so that the power of the ratio stays finite in float32.
    below, above = np.minimum(low / frequency, np.float32(1e4)), frequency / np.float32(high)
    for _ in range(order.bit_length()):
        below, above = np.square(below), np.square(above)
    magnitude = 1.0 / np.sqrt((1.0 + below) * (1.0 + above))
    if tilt:
        magnitude *= (frequency / low) ** tilt
    spectrum = np.zeros(bins, dtype=np.complex64)
    spectrum[1:] = rng.standard_normal((bins - 1, 2), dtype=np.float32).view(np.complex64)[:, 0] * magnitude
    noise = np.fft.irfft(spectrum, size)[:n]
    return (noise / (np.sqrt(np.mean(np.square(noise))) + 1e-12)).astype(np.float32)


def convolve(signal: Audio, response: Audio) -> Audio:
    """`signal` convolved with `response`, truncated to the length of the signal."""
    size = fft_length(len(signal) + len(response))
    product = np.fft.rfft(signal, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(signal)].astype(np.float32)


def impulses(rng: np.random.Generator, n: int, rate: float) -> Audio:
    """`rate` impulses per second at random times, with random heights in (0, 1]."""
    train = np.zeros(n, dtype=np.float32)
    count = max(1, int(rng.poisson(rate * n / SAMPLE_RATE)))
    np.add.at(train, rng.integers(0, n, count), (1.0 - rng.random(count, dtype=np.float32)) ** 2)
    return train


def scatter(grains: Sequence[Audio], onsets: NDArray[np.int64], gains: NDArray[np.float32], n: int) -> Audio:
    """Sums grains, used in turn, one at each onset (samples) with its gain; truncated to `n` samples."""
    total = np.zeros(n, dtype=np.float32)
    for i, onset in enumerate(onsets):
        grain = grains[i % len(grains)][: n - onset]
        total[onset : onset + len(grain)] += gains[i] * grain
    return total


def regular_onsets(rng: np.random.Generator, n: int, period: float, jitter: float) -> NDArray[np.int64]:
    """Onsets (samples) every `period` seconds, each delayed by up to the fraction `jitter` of the period."""
    count = 1 + int((n - 1) / (period * SAMPLE_RATE))
    onsets = (np.arange(count) + rng.uniform(0.0, jitter, count)) * period * SAMPLE_RATE
    return onsets[onsets < n].astype(np.int64)


def fade(signal: Audio, attack: float, release: float) -> Audio:
    """`signal` with raised-cosine fades of `attack` and `release` seconds (each at most half of the signal)."""
    faded = signal.copy()
    rise, fall = (min(samples(seconds), len(signal) // 2) for seconds in (attack, release))
    if rise:
        faded[:rise] *= 0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, rise, dtype=np.float32))
    if fall:
        faded[-fall:] *= 0.5 + 0.5 * np.cos(np.linspace(0.0, np.pi, fall, dtype=np.float32))
    return faded
