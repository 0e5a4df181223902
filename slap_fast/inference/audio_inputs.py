"""Audio clips from files, folders and prepared datasets: read ahead in threads, with unreadable clips recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.audio.errors import AudioError
from slap_fast.audio.formats import CONVERT_HINT
from slap_fast.audio.reader import open_audio
from slap_fast.audio.waveform import load_audio, log_notes, mono_blocks
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled import LabeledFile
from slap_fast.data.prepare.source import ClipItem, Rejection, RenderedAudio
from slap_fast.errors import SlapFastError
from slap_fast.inference import MAX_SECONDS


class NoReadableClipError(SlapFastError, ValueError):
    """There are no clips, or none of them could be read; the message has the first reason."""


@dataclass(frozen=True)
class AudioInput:
    """One clip to be read."""

    name: str
    read: Callable[[int], np.ndarray]
    """Sample rate in Hz to `[S]` float32 mono samples; raises AudioError, DatasetError or OSError."""
    metadata: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass(frozen=True)
class Skipped:
    """A clip that could not be read."""

    name: str
    reason: str


def dataset_inputs(index: ClipIndex, limit: int | None = None) -> list[AudioInput]:
    """The clips of a prepared dataset, or `limit` evenly spaced ones."""
    clips = range(len(index)) if limit is None else evenly_spaced(len(index), limit)
    return [
        AudioInput(index.key(clip), partial(_read_clip, index, clip), partial(index.read_metadata, clip))
        for clip in clips
    ]


def file_input(path: Path, *, max_seconds: float = MAX_SECONDS) -> AudioInput:
    """An audio file; reading it fails if it is longer than `max_seconds`."""
    return AudioInput(str(path), partial(_read_file, path, max_seconds))


def labeled_input(file: LabeledFile, *, max_seconds: float = MAX_SECONDS) -> AudioInput:
    """The audio of a clip of `open_labeled`; `name` is its path."""

    def read(sample_rate: int) -> np.ndarray:
        try:
            if file.read is None:
                return _read_file(file.path, max_seconds, sample_rate)
            return load_audio(file.read(), sample_rate)
        except (AudioError, DatasetError, OSError) as error:
            if file.note is None:
                raise
            raise DatasetError(f"{error} ({file.note})") from error

    return AudioInput(str(file.path), read)


def source_inputs(source: Iterable[ClipItem | Rejection], *, max_seconds: float = MAX_SECONDS) -> list[AudioInput]:
    """The clips of a source of `open_source`, not prepared; what the source rejects cannot be read, for that reason."""
    inputs = []
    for item in source:
        if isinstance(item, Rejection):
            inputs.append(unusable_input(item.origin, item.reason, item.detail))
        else:
            metadata = {"captions": list(item.captions), "source": item.origin, "metadata": item.metadata}
            inputs.append(AudioInput(item.name, partial(_read_item, item, max_seconds), partial(dict, metadata)))
    return inputs


def unusable_input(name: str, reason: str, detail: str) -> AudioInput:
    """A file that is known not to be readable, so that it is reported among the skipped clips."""

    def read(sample_rate: int) -> np.ndarray:
        raise AudioError(reason, detail)

    return AudioInput(name, read)


def evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced positions out of `count`."""
    limit = min(count, limit)
    return [position * count // limit for position in range(limit)]


def read_ahead(
    inputs: Sequence[AudioInput], sample_rate: int, skipped: list[Skipped], *, threads: int = 2
) -> Iterator[tuple[AudioInput, np.ndarray]]:
    """Clips and their waveforms, in order, prefetched by `threads`; unreadable clips are appended to `skipped`."""
    with ThreadPoolExecutor(threads) as pool:
        remaining = iter(inputs)
        pending: list[tuple[AudioInput, Future[np.ndarray]]] = []
        try:
            pending += [(clip, pool.submit(clip.read, sample_rate)) for clip in islice(remaining, 4 * threads)]
            while pending:
                clip, future = pending.pop(0)
                pending += [(later, pool.submit(later.read, sample_rate)) for later in islice(remaining, 1)]
                try:
                    waveform = future.result()
                except (AudioError, DatasetError, OSError) as error:
                    skipped.append(Skipped(clip.name, str(error)))
                else:
                    yield clip, waveform
        finally:
            for _, future in pending:
                future.cancel()


def batch_by_duration(
    clips: Iterable[tuple[AudioInput, np.ndarray]], sample_rate: int, seconds: float
) -> Iterator[list[tuple[AudioInput, np.ndarray]]]:
    """Clips in order, in batches of at most `seconds` in total; a longer clip is a batch of its own."""
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


def describe_nothing_read(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return "no clips"
    return f"none of {len(skipped)} clips could be read; the first is {skipped[0].name}: {skipped[0].reason}"


def _read_item(item: ClipItem, max_seconds: float, sample_rate: int) -> np.ndarray:
    if isinstance(item.audio, RenderedAudio):
        raise DatasetError(f"{item.name}: generated clips have to be prepared first")
    with _with_hint(), item.audio.open() as sound:
        return _read_sound(sound, item.name, max_seconds, sample_rate)


def _read_file(path: Path, max_seconds: float, sample_rate: int) -> np.ndarray:
    with _with_hint(), open_audio(path) as sound:
        return _read_sound(sound, str(path), max_seconds, sample_rate)


def _read_sound(sound: Any, name: str, max_seconds: float, sample_rate: int) -> np.ndarray:
    blocks: list[np.ndarray] = []
    samples = 0
    for block in mono_blocks(sound, sample_rate):
        blocks.append(block)
        samples += len(block)
        # Checked while reading, because the headers of some formats do not have the length.
        if samples > max_seconds * sample_rate:
            detail = f"more than {max_seconds:g} s; cut it into parts, or raise --max-seconds"
            raise AudioError("too_long", detail)
    log_notes(sound, name)
    if not samples:
        raise AudioError("no_samples", "0 samples")
    return np.concatenate(blocks)


@contextmanager
def _with_hint() -> Iterator[None]:
    """Adds to the error of an unreadable file how to convert it."""
    try:
        yield
    except AudioError as error:
        if error.reason == "unreadable" and CONVERT_HINT not in error.detail:
            raise AudioError(error.reason, f"{error.detail}; if it plays elsewhere, {CONVERT_HINT}") from error
        raise


def _read_clip(index: ClipIndex, clip: int, sample_rate: int) -> np.ndarray:
    return load_audio(index.read_audio(clip), sample_rate)
