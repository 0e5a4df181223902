"""Waveform loading: any audio file as mono float32 at one sample rate.

Channels are mixed by their mean; resampling is soxr's HQ, once. Everything streams in blocks, so a three-hour clip
needs no more memory than a short one.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import AudioFileLike, open_audio

logger = logging.getLogger(__name__)

_LOWEST_RATE = 500  # Hz; resampled from less, a small file with a damaged header would become gigabytes


def load_audio(file: AudioFileLike, sample_rate: int = 16_000) -> np.ndarray:
    """Load a clip as `[S]` float32 mono at `sample_rate` Hz.

    Values are those of the decoder (within [-1, 1] for integer formats), not clipped. Irregularities of a usable file
    are logged as warnings.

    Raises:
        AudioError: the file is missing, empty, not audio, truncated, without samples, contains NaN or infinity, or
            floats at the scale of integers.
    """
    return np.concatenate(list(audio_blocks(file, sample_rate)))


def audio_blocks(file: AudioFileLike, sample_rate: int = 16_000) -> Iterator[np.ndarray]:
    """The clip of `load_audio` as a stream of non-empty `[n]` blocks, in constant memory.

    Raises:
        AudioError: as `load_audio`, at the latest after the last block.
    """
    samples = 0
    with open_audio(file) as sound:
        for block in mono_blocks(sound, sample_rate):
            samples += len(block)
            yield block
        log_notes(sound, _name(file))
    if not samples:
        raise AudioError("no_samples", f"{_name(file)} holds no samples")


def log_notes(sound: AudioSource, name: str) -> None:
    """Log the irregularities of a file as warnings. Call after its blocks were read."""
    for reason, detail in sound.notes:
        logger.warning("%s: %s: %s", name, reason, detail)


def mono_blocks(sound: AudioSource, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield non-empty `[n]` float32 blocks of an open file: mono, resampled to `sample_rate` Hz."""
    for rate, blocks in itertools.groupby(sound.blocks(), lambda block: block[0]):
        yield from _resampled((block for _, block in blocks), rate, sample_rate)


def _resampled(blocks: Iterable[np.ndarray], source_rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    if source_rate == sample_rate:
        yield from blocks
        return
    if source_rate < _LOWEST_RATE:
        raise AudioError("unreadable", f"the header has {source_rate} Hz, less than {_LOWEST_RATE} Hz")
    try:
        resampler = soxr.ResampleStream(source_rate, sample_rate, 1, dtype="float32", quality="HQ")
    except (ValueError, RuntimeError) as error:
        raise AudioError("unreadable", f"cannot resample from {source_rate} Hz ({error})") from error
    for block in blocks:
        if len(resampled := resampler.resample_chunk(block)):
            yield resampled
    if len(resampled := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield resampled


def _name(file: object) -> str:
    return str(file) if isinstance(file, (str, os.PathLike)) else "the stream"
