"""Audio from files, folders and prepared datasets, read ahead in threads and embedded; what cannot be read is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from slap_fast.audio.files import CONVERT, AudioError, load_audio, mono_blocks, open_audio, warn_of
from slap_fast.config.model import ModelConfig
from slap_fast.data.format.index import ClipIndex, DatasetError
from slap_fast.errors import SlapFastError
from slap_fast.runtime.progress import progress_bar

BATCH_SECONDS = 240.0
"""Audio encoded at a time: bounds memory, changes no result."""
MAX_SECONDS = 600.0
"""A longer file is skipped: attention's cost grows with the square of the length."""


class Encoder(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def encode_audio(self, audio: Sequence[Any], *, sampling_rate: float) -> Any: ...

    def encode_text(self, texts: list[str]) -> Tensor: ...


class EvaluationError(SlapFastError, ValueError):
    """There is nothing to evaluate; the message says why."""


class EmbeddingInterrupted(KeyboardInterrupt):
    """An interrupt between two batches or within one.

    Attributes:
        done: what was embedded before.
    """

    def __init__(self, done: EmbeddedAudio) -> None:
        super().__init__()
        self.done = done


@dataclass(frozen=True)
class AudioInput:
    """One clip that can be read when its turn comes."""

    name: str
    read: Callable[[int], np.ndarray]
    """Sample rate in Hz to `[S]` float32 mono samples; raises AudioError, DatasetError or OSError."""
    metadata: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass(frozen=True)
class Skipped:
    name: str
    reason: str


@dataclass(frozen=True)
class EmbeddedAudio:
    """`embeddings` `[N, D]` float32 on the CPU, of `inputs`, the N that could be read."""

    inputs: list[AudioInput]
    embeddings: Tensor
    skipped: list[Skipped]


@dataclass(frozen=True)
class EmbeddedDataset:
    """A captioned dataset in the shared space.

    Attributes:
        audio: `[N, D]` float32 L2-normalised, of the clips that could be read.
        text: `[M, D]` float32 L2-normalised, of every caption of those clips.
        text_to_audio: `[M]` int64, ascending.
    """

    clips: list[AudioInput]
    audio: Tensor
    captions: list[str]
    text: Tensor
    text_to_audio: Tensor
    skipped: list[Skipped]

    def first_captions(self) -> Tensor:
        """Positions of the first caption of each clip that has one."""
        return torch.cat([torch.ones(1, dtype=torch.bool), self.text_to_audio.diff() > 0]).nonzero().squeeze(1)


def dataset_inputs(index: ClipIndex, limit: int | None = None) -> list[AudioInput]:
    """The clips of a prepared dataset; of more than `limit`, that many at even distances."""
    clips = range(len(index)) if limit is None else evenly(len(index), limit)
    return [
        AudioInput(index.key(clip), partial(_read_clip, index, clip), partial(index.read_metadata, clip))
        for clip in clips
    ]


def evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` positions, at even distances."""
    limit = min(count, limit)
    return [position * count // limit for position in range(limit)]


def file_input(path: Path, *, max_seconds: float = MAX_SECONDS) -> AudioInput:
    """A file whose clip can be read if it is not longer than `max_seconds`."""
    return AudioInput(str(path), partial(_read_file, path, max_seconds))


def unusable_input(name: str, reason: str, detail: str) -> AudioInput:
    """What was met and cannot be a clip: it is named among what could not be read."""

    def read(sample_rate: int) -> np.ndarray:
        raise AudioError(reason, detail)

    return AudioInput(name, read)


def read_ahead(
    inputs: Sequence[AudioInput], sample_rate: int, skipped: list[Skipped], *, threads: int = 2
) -> Iterator[tuple[AudioInput, np.ndarray]]:
    """Clips in order with their waveforms, a few read ahead; those that cannot be read go to `skipped`."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(inputs)
        pending: list[tuple[AudioInput, Future[np.ndarray]]] = []
        try:
            pending += [(clip, pool.submit(clip.read, sample_rate)) for clip in islice(waiting, 4 * threads)]
            while pending:
                clip, future = pending.pop(0)
                pending += [(later, pool.submit(later.read, sample_rate)) for later in islice(waiting, 1)]
                try:
                    waveform = future.result()
                except (AudioError, DatasetError, OSError) as error:
                    skipped.append(Skipped(clip.name, str(error)))
                else:
                    yield clip, waveform
        finally:
            for _, future in pending:
                future.cancel()


def batches_of_seconds(
    clips: Iterable[tuple[AudioInput, np.ndarray]], sample_rate: int, seconds: float = BATCH_SECONDS
) -> Iterator[list[tuple[AudioInput, np.ndarray]]]:
    """Clips in order, as many at a time as last `seconds` together, and never none."""
    batch: list[tuple[AudioInput, np.ndarray]] = []
    samples = 0
    for clip, waveform in clips:
        if batch and samples + len(waveform) > seconds * sample_rate:
            yield batch
            batch, samples = [], 0
        batch.append((clip, waveform))
        samples += len(waveform)
    if batch:
        yield batch


def embed_inputs(model: Encoder, inputs: Sequence[AudioInput], *, progress: bool = False) -> EmbeddedAudio:
    """Embed what can be read.

    Raises:
        EvaluationError: nothing could be read; the message holds the first reason.
        EmbeddingInterrupted: with what was done before Ctrl-C.
    """
    audio = embed_readable(model, inputs, progress=progress)
    if not audio.inputs:
        raise EvaluationError(describe_nothing_read(audio.skipped))
    return audio


def embed_readable(model: Encoder, inputs: Sequence[AudioInput], *, progress: bool = False) -> EmbeddedAudio:
    """Embed what can be read, which may be nothing.

    Raises:
        EmbeddingInterrupted: with what was done before Ctrl-C.
    """
    config, sample_rate = model.config, model.config.mel.sample_rate
    kept: list[AudioInput] = []
    skipped: list[Skipped] = []
    embeddings = [torch.empty(0, config.audio.width)]
    with progress_bar(total=len(inputs), desc="audio", unit="clip", disable=not progress) as bar:
        try:
            for batch in batches_of_seconds(read_ahead(inputs, sample_rate, skipped), sample_rate):
                waveforms = [waveform for _, waveform in batch]
                embeddings.append(model.encode_audio(waveforms, sampling_rate=sample_rate).detach().float().cpu())
                kept += [clip for clip, _ in batch]
                bar.update(len(kept) + len(skipped) - bar.n)
        except KeyboardInterrupt as interrupt:
            # One that comes between two lines leaves embeddings without their clips.
            rows = torch.cat(embeddings[1:] or embeddings)[: len(kept)]
            raise EmbeddingInterrupted(EmbeddedAudio(kept, rows, skipped)) from interrupt
    # The empty one gives the width where there is nothing else.
    return EmbeddedAudio(kept, torch.cat(embeddings[1:] or embeddings), skipped)


def describe_nothing_read(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return "no clips"
    return f"none of {len(skipped)} clips could be read; the first is {skipped[0].name}: {skipped[0].reason}"


def embed_texts(model: Encoder, texts: list[str], *, progress: bool = False, batch_size: int = 256) -> Tensor:
    """`[len(texts), D]` float32 on the CPU."""
    if not texts:
        return torch.empty(0, model.config.audio.width)
    starts = progress_bar(range(0, len(texts), batch_size), desc="text", unit="batch", disable=not progress)
    return torch.cat([model.encode_text(texts[at : at + batch_size]).detach().float().cpu() for at in starts])


def embed_dataset(
    model: Encoder, index: ClipIndex, *, limit: int | None = None, progress: bool = False
) -> EmbeddedDataset:
    """Embed the clips of a prepared dataset and all captions of those that can be read.

    Raises:
        EvaluationError: no clip could be read.
    """
    return _with_captions(model, embed_inputs(model, dataset_inputs(index, limit), progress=progress), progress)


def embed_clips(model: Encoder, clips: Sequence[AudioInput]) -> EmbeddedDataset:
    """Embed some clips of a prepared dataset and all captions of those that can be read, which may be none."""
    return _with_captions(model, embed_readable(model, clips), progress=False)


def _with_captions(model: Encoder, audio: EmbeddedAudio, progress: bool) -> EmbeddedDataset:
    captions, text_to_audio = [], []
    for position, clip in enumerate(audio.inputs):
        own = clip.metadata()["captions"]
        captions += own
        text_to_audio += [position] * len(own)
    text = embed_texts(model, captions, progress=progress)
    targets = torch.tensor(text_to_audio, dtype=torch.int64)
    return EmbeddedDataset(audio.inputs, audio.embeddings, captions, text, targets, audio.skipped)


def _read_file(path: Path, max_seconds: float, sample_rate: int) -> np.ndarray:
    blocks: list[np.ndarray] = []
    samples = 0
    try:
        with open_audio(path) as sound:
            for block in mono_blocks(sound, sample_rate):
                blocks.append(block)
                samples += len(block)
                # Checked as it is read: headers of some formats do not tell.
                if samples > max_seconds * sample_rate:
                    longest = f"more than {max_seconds:g} s; cut it into parts, or raise --max-seconds"
                    raise AudioError("too_long", longest)
            warn_of(sound, str(path))
    except AudioError as error:
        if error.reason == "unreadable":
            raise AudioError(error.reason, f"{error.detail}; if it plays elsewhere, {CONVERT}") from error
        raise
    if not samples:
        raise AudioError("no_samples", "0 samples")
    return np.concatenate(blocks)


def _read_clip(index: ClipIndex, clip: int, sample_rate: int) -> np.ndarray:
    return load_audio(index.read_audio(clip), sample_rate)
