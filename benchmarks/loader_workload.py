"""Workload of the loader benchmark: a synthetic dataset of clips of one length."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare import prepare
from slap_fast.data.prepare.source import GeneratedSource
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
from slap_fast.synthetic import SAMPLE_RATE, SyntheticClip, iter_synthetic

# One in this many samples is compared with the reference: all parts of a clip, and few enough for float64.
CHECKED_STRIDE = 997


@dataclass(frozen=True)
class Workload:
    """The data that one step loads.

    Attributes:
        clips: number of clips in the dataset.
        seconds: length of each clip.
        batch_size: clips per batch.
        batches: batches per step.
        crop: seconds of each clip that are loaded, from a random place; None: all of it.
    """

    clips: int
    seconds: float
    batch_size: int
    batches: int
    crop: float | None = None

    @property
    def loaded(self) -> int:
        return self.batch_size * self.batches

    @property
    def samples(self) -> int:
        """Loaded of each clip."""
        return round((self.crop or self.seconds) * SAMPLE_RATE)

    def open(self) -> ClipIndex:
        return ClipIndex.open(_folder(self))

    def sampler(self, index: ClipIndex) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            index,
            batch_size=self.batch_size,
            seed=0,
            max_duration=self.crop or self.seconds,
            crop_above_max_duration=self.crop is not None,
        )

    def order(self) -> list[list[tuple[int, int]]]:
        """The clips of each batch, each with the first sample to load."""
        sampler = self.sampler(self.open())
        batches = (sampler.rank_batch(step, 0, 1) for step in range(self.batches))
        return [[(ref.clip, (ref.crop or (0, 0))[0]) for ref in batch] for batch in batches]

    def checked(self, batches: list[Tensor]) -> Tensor:
        """`[clips, n]` samples of packed waveforms to compare with the reference."""
        return torch.cat([batch.view(-1, self.samples)[:, ::CHECKED_STRIDE] for batch in batches])


@dataclass(frozen=True)
class _Joined:
    """Concatenated synthetic scenes, truncated to a length, with the captions of the first."""

    scenes: tuple[SyntheticClip, ...]
    samples: int

    @property
    def key(self) -> str:
        return self.scenes[0].key

    @property
    def captions(self) -> tuple[str, ...]:
        return self.scenes[0].captions

    @property
    def metadata(self) -> dict[str, Any]:
        return self.scenes[0].metadata

    def render(self) -> np.ndarray:
        return np.concatenate([scene.render() for scene in self.scenes])[: self.samples]


def _joined(workload: Workload) -> Iterator[_Joined]:
    scenes = iter_synthetic("train", 2**62, 0)
    for _ in range(workload.clips):
        own: list[SyntheticClip] = []
        while sum(scene.scene.duration for scene in own) <= workload.seconds:
            own.append(next(scenes))
        yield _Joined(tuple(own), round(workload.seconds * SAMPLE_RATE))


@functools.cache
def _folder(workload: Workload) -> Path:
    """A temporary dataset folder, deleted when the process ends."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="slap-fast-loader-"))
    folder = Path(_KEPT[-1].name, "data")
    source = GeneratedSource(partial(_joined, workload), "benchmark", {}, workload.clips)
    # Generating a few clips is faster than starting worker processes.
    prepare(source, folder, workers=None if workload.clips > 100 else 0, vocab_size=2000, progress=False)
    return folder


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
