"""Workload of a plan: durations of clips, lengths of captions, and size of the audio files."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from slap_fast.config.loading import ConfigError
from slap_fast.config.recipe import DataConfig
from slap_fast.data.sampling.mixture import Mixture

_QUANTILES = 4096
_SAMPLE = 1 << 16
_CAPTIONS = 256
# Byte-level BPE on English captions splits about a third of the words; start and end tokens add two per caption.
_TOKENS_PER_WORD = 1.33


@dataclass(frozen=True)
class Workload:
    """
    Attributes:
        seconds: ascending quantiles of the durations.
        caption_tokens: mean length of a caption, including its start and end tokens.
        bytes_per_second: of FLAC per second of audio.
        origin: of durations, captions and sizes, in words.
    """

    seconds: np.ndarray
    caption_tokens: int
    bytes_per_second: float
    origin: str

    @property
    def mean(self) -> float:
        return float(self.seconds.mean())

    @property
    def longest(self) -> float:
        return float(self.seconds[-1])

    def clips(self, count: int) -> np.ndarray:
        """`[count]` durations of representative clips: evenly spaced quantiles."""
        places = (np.arange(count) + 0.5) / count * (len(self.seconds) - 1)
        return np.interp(places, np.arange(len(self.seconds)), self.seconds)

    def length_margin(self, count: int, drawn: int) -> float:
        """Audio of the longest of many micro-batches relative to the mean one: three standard deviations above it.

        Args:
            count: clips of the micro-batch.
            drawn: clips of the batch that was sampled at random and of which this is a balanced part; `count` if the
                micro-batch itself was sampled.
        """
        deviation = float(self.seconds.std()) / self.mean
        upper = self.longest / self.mean
        return min(upper, 1 + 3 * deviation / math.sqrt(max(count, drawn)))


def web_mix(max_duration: float, bytes_per_second: float, caption_tokens: int = 20) -> Workload:
    """Assumed mix of web-scale captioned audio, as in `python -m benchmarks training_step`.

    Half of the clips last exactly 10 s (AudioSet, VGGSound, AudioCaps), a quarter is uniform over 15 to 30 s (Clotho),
    and a quarter log-uniform over 1 to 30 s (other recordings).
    """
    quarter = (np.arange(_QUANTILES // 4) + 0.5) / (_QUANTILES // 4)
    tens = np.full(_QUANTILES // 2, 10.0)
    seconds = np.concatenate([tens, 15 + 15 * quarter, np.exp(quarter * math.log(30.0))])
    return Workload(
        np.sort(np.minimum(seconds, max_duration)),
        caption_tokens,
        bytes_per_second,
        "an assumed mix: half of the clips 10 s, a quarter 15 to 30 s, a quarter 1 to 30 s",
    )


def dataset_workload(datasets: Mixture, data: DataConfig, caption_tokens: float | None) -> Workload:
    """Durations and sizes in the datasets of a recipe, by their weights.

    Args:
        caption_tokens: mean length of a caption; None: estimated from its words.

    Raises:
        ConfigError: no clip is within `data.max_duration`.
    """
    drawn, sizes, seconds = [], 0.0, 0.0
    words: list[int] = []
    for index, weight in zip(datasets.indexes, datasets.weights, strict=True):
        rows = np.unique(np.linspace(0, len(index) - 1, min(len(index), _SAMPLE)).astype(np.int64))
        records, durations = index.records[rows], index.durations[rows].astype(np.float64)
        share = float(weight)
        sizes += share * float(records["audio_size"].mean())
        seconds += share * float(durations.mean())
        own = durations if data.crop_above_max_duration else durations[durations <= data.max_duration]
        own = np.sort(np.minimum(own, data.max_duration))
        count = max(1, round(share * _QUANTILES))
        places = (np.arange(count) + 0.5) / count
        drawn.append(np.quantile(own, places) if len(own) else np.zeros(0))
        for row in rows[:: max(1, len(rows) // _CAPTIONS)]:
            words += [len(caption.split()) for caption in index.read_metadata(int(row))["captions"]]
    durations = np.sort(np.concatenate(drawn))
    if not len(durations):
        raise ConfigError(
            f"all clips of data.train are longer than data.max_duration ({data.max_duration:g} s); raise it, or set "
            "data.crop_above_max_duration=true"
        )
    average = _TOKENS_PER_WORD * float(np.mean(words)) + 2 if caption_tokens is None else caption_tokens
    return Workload(durations, round(average), sizes / seconds, f"data.train: {len(datasets)} clips")
