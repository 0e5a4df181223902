"""Embeddings of audio files, datasets and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from slap_fast.audio.errors import AudioError
from slap_fast.config.model import ModelConfig
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.inference.audio_inputs import (
    AudioInput,
    ClipHead,
    NoReadableClipError,
    Skipped,
    describe_nothing_read,
    stream_ahead,
)
from slap_fast.models.windows import MeanEmbedding, cut_windows, window_lengths
from slap_fast.runtime.progress import progress_bar

BATCH_SECONDS = 240.0
"""Seconds of audio read and encoded at a time: bounds memory, does not change results."""


class Encoder(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def encode_audio(self, audio: Sequence[Any], *, sampling_rate: float) -> Any: ...

    def encode_text(self, texts: list[str]) -> Tensor: ...

    def require(self, part: str) -> None: ...


@dataclass(frozen=True)
class EmbeddedAudio:
    """Embeddings of the clips that could be read.

    Attributes:
        inputs: the N clips that could be read.
        embeddings: `[N, D]` float32 on the CPU.
        skipped: the clips that could not be read.
    """

    inputs: list[AudioInput]
    embeddings: Tensor
    skipped: list[Skipped]


@dataclass(frozen=True)
class EmbeddedDataset:
    """Embeddings of a captioned dataset.

    Attributes:
        clips: the N clips that could be read.
        audio: `[N, D]` float32, L2-normalized, of `clips`.
        captions: all M captions of `clips`.
        text: `[M, D]` float32, L2-normalized, of `captions`.
        text_to_audio: `[M]` int64, ascending: the clip of each caption.
        skipped: the clips that could not be read.
    """

    clips: list[AudioInput]
    audio: Tensor
    captions: list[str]
    text: Tensor
    text_to_audio: Tensor
    skipped: list[Skipped]

    def first_captions(self) -> Tensor:
        """Positions in `captions` of the first caption of each clip that has one."""
        return torch.cat([torch.ones(1, dtype=torch.bool), self.text_to_audio.diff() > 0]).nonzero().squeeze(1)


class EmbeddingInterrupted(KeyboardInterrupt):
    """Ctrl-C during embedding.

    Attributes:
        done: the clips embedded so far.
    """

    def __init__(self, done: EmbeddedAudio) -> None:
        super().__init__()
        self.done = done


def embed_audio(
    model: Encoder, inputs: Sequence[AudioInput], *, allow_empty: bool = False, progress: bool = False
) -> EmbeddedAudio:
    """Embed the clips that can be read, of any length in constant memory.

    As in `SLAP.encode_audio`, the embedding of a clip of more than `max_duration` is the mean of its windows.

    Args:
        allow_empty: return an empty result, rather than raise, if no clip can be read.

    Raises:
        NoReadableClipError: no clip could be read.
        EmbeddingInterrupted: Ctrl-C; it has the clips embedded so far.
        ModelError: the model was trained without the contrastive objective.
    """
    model.require("audio_pooling")  # before audio is read
    config, sample_rate = model.config, model.config.mel.sample_rate
    kept: list[AudioInput] = []
    skipped: list[Skipped] = []
    embeddings = [torch.empty(0, config.audio.width)]  # has the width if there is nothing else
    with progress_bar(total=len(inputs), desc="audio", unit="clip", disable=not progress) as bar:
        try:
            heads = stream_ahead(inputs, sample_rate, skipped, seconds=config.max_duration)
            for batch in _batches(heads, int(BATCH_SECONDS * sample_rate)):
                clip, head = batch[0]
                if head.rest is not None:
                    try:
                        embeddings.append(_embed_windows(model, chain([head.samples], head.rest)))
                    except (AudioError, DatasetError, OSError) as error:
                        skipped.append(Skipped(clip.name, str(error)))
                        continue
                else:
                    waveforms = [head.samples for _, head in batch]
                    embeddings.append(model.encode_audio(waveforms, sampling_rate=sample_rate).detach().float().cpu())
                kept += [clip for clip, _ in batch]
                bar.update(len(kept) + len(skipped) - bar.n)
        except KeyboardInterrupt as interrupt:
            # An interrupt between the two appends leaves embeddings without their clips.
            rows = torch.cat(embeddings[1:] or embeddings)[: len(kept)]
            raise EmbeddingInterrupted(EmbeddedAudio(kept, rows, skipped)) from interrupt
    if not kept and not allow_empty:
        raise NoReadableClipError(describe_nothing_read(skipped))
    return EmbeddedAudio(kept, torch.cat(embeddings[1:] or embeddings), skipped)


def _batches(heads: Iterable[tuple[AudioInput, ClipHead]], samples: int) -> Iterator[list[tuple[AudioInput, ClipHead]]]:
    """Clips in order, in batches of at most `samples` in total; a long one by itself."""
    batch: list[tuple[AudioInput, ClipHead]] = []
    for clip, head in heads:
        if batch and (head.rest is not None or sum(len(h.samples) for _, h in batch) + len(head.samples) > samples):
            yield batch
            batch = []
        batch.append((clip, head))
        if head.rest is not None:
            yield batch
            batch = []
    if batch:
        yield batch


def _embed_windows(model: Encoder, blocks: Iterable[np.ndarray]) -> Tensor:
    """`[1, D]` embedding of a long clip."""
    sample_rate = model.config.mel.sample_rate
    window, hop = (round(seconds * sample_rate) for seconds in window_lengths(model.config.max_duration))
    windows = (samples for _, samples in cut_windows(blocks, window, hop))
    mean = MeanEmbedding()
    while batch := list(islice(windows, max(1, int(BATCH_SECONDS * sample_rate) // window))):
        mean.add(model.encode_audio(batch, sampling_rate=sample_rate).detach().float().cpu().numpy())
    return torch.from_numpy(mean.result())[None]


def embed_texts(model: Encoder, texts: list[str], *, progress: bool = False, batch_size: int = 256) -> Tensor:
    """`[len(texts), D]` float32 on the CPU."""
    if not texts:
        return torch.empty(0, model.config.audio.width)
    starts = progress_bar(range(0, len(texts), batch_size), desc="text", unit="batch", disable=not progress)
    return torch.cat([model.encode_text(texts[at : at + batch_size]).detach().float().cpu() for at in starts])


def embed_dataset(
    model: Encoder, clips: Sequence[AudioInput], *, allow_empty: bool = False, progress: bool = False
) -> EmbeddedDataset:
    """Embed clips of a prepared dataset (`dataset_inputs`) and all captions of those that can be read.

    Args and errors as in `embed_audio`.
    """
    audio = embed_audio(model, clips, allow_empty=allow_empty, progress=progress)
    captions, text_to_audio = [], []
    for position, clip in enumerate(audio.inputs):
        own = clip.metadata()["captions"]
        captions += own
        text_to_audio += [position] * len(own)
    text = embed_texts(model, captions, progress=progress)
    targets = torch.tensor(text_to_audio, dtype=torch.int64)
    return EmbeddedDataset(audio.inputs, audio.embeddings, captions, text, targets, audio.skipped)
