"""Audio clips from files, folders and prepared datasets: read ahead in threads, with unreadable clips recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from slap_fast.audio.errors import AudioError
from slap_fast.audio.formats import CONVERT_HINT
from slap_fast.audio.reader import open_audio
from slap_fast.audio.waveform import audio_blocks, log_notes, mono_blocks
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.labeled import LabeledFile
from slap_fast.data.prepare.source import ClipItem, Rejection, RenderedAudio
from slap_fast.errors import SlapFastError

_T = TypeVar("_T")


class NoReadableClipError(SlapFastError, ValueError):
    """There are no clips, or none of them could be read; the message has the first reason."""


@dataclass(frozen=True)
class AudioInput:
    """One clip to be read."""

    name: str
    read: Callable[[int], np.ndarray]
    """Sample rate in Hz to `[S]` float32 mono samples; raises AudioError, DatasetError or OSError."""
    metadata: Callable[[], dict[str, Any]] = field(default=dict)
    stream: Callable[[int], Iterator[np.ndarray]] | None = None
    """The samples of `read` in blocks, for recordings of any length; None: `read` gives one block."""

    def blocks(self, sample_rate: int) -> Iterator[np.ndarray]:
        """The samples of `read` in non-empty blocks, with its errors."""
        return iter([self.read(sample_rate)]) if self.stream is None else self.stream(sample_rate)


class ClipHead(NamedTuple):
    """The first samples of a clip.

    Attributes:
        samples: `[n]` float32; all of them, if `rest` is None.
        rest: the following blocks of a longer clip.
    """

    samples: np.ndarray
    rest: Iterator[np.ndarray] | None


@dataclass(frozen=True)
class Skipped:
    """A clip that could not be read."""

    name: str
    reason: str


def dataset_inputs(index: ClipIndex, limit: int | None = None) -> list[AudioInput]:
    """The clips of a prepared dataset, or `limit` evenly spaced ones."""
    clips = range(len(index)) if limit is None else evenly_spaced(len(index), limit)
    return [
        _streamed(index.key(clip), partial(_clip_blocks, index, clip), partial(index.read_metadata, clip))
        for clip in clips
    ]


def file_input(path: Path, *, max_seconds: float = math.inf) -> AudioInput:
    """An audio file; reading it fails if it is longer than `max_seconds`."""
    return _streamed(str(path), partial(_file_blocks, path, max_seconds))


def recording_input(name: str) -> AudioInput:
    """A file; or a clip of a dataset that `slap-fast prepare` wrote, as `FOLDER#KEY`.

    Raises:
        NoReadableClipError: there is no such file, folder or key.
        DatasetError: the dataset is damaged.
    """
    folder, separator, key = name.rpartition("#")
    if Path(name).is_file():
        return file_input(Path(name))
    if not (separator and (Path(folder) / "dataset.json").is_file()):
        hint = "a folder is no recording: give one of its files, or FOLDER#KEY for a clip of a prepared dataset"
        raise NoReadableClipError(f"{name}: {hint if Path(name).is_dir() else 'no such file'}")
    index = ClipIndex.open(folder)
    clip = next((clip for clip in range(len(index)) if index.key(clip) == key), None)
    if clip is None:
        example = f", such as {index.key(0)!r}" if len(index) else ""
        raise NoReadableClipError(f"{folder}: no clip has the key {key!r}; its {len(index)} clips have others{example}")
    return _streamed(name, partial(_clip_blocks, index, clip), partial(index.read_metadata, clip))


def labeled_input(file: LabeledFile, *, max_seconds: float = math.inf) -> AudioInput:
    """The audio of a clip of `open_labeled`; `name` is its path."""

    def blocks(sample_rate: int) -> Iterator[np.ndarray]:
        try:
            if file.read is None:
                yield from _file_blocks(file.path, max_seconds, sample_rate)
            else:
                yield from audio_blocks(file.read(), sample_rate)
        except (AudioError, DatasetError, OSError) as error:
            if file.note is None:
                raise
            raise DatasetError(f"{error} ({file.note})") from error

    return _streamed(str(file.path), blocks)


def source_inputs(source: Iterable[ClipItem | Rejection], *, max_seconds: float = math.inf) -> list[AudioInput]:
    """The clips of a source of `open_source`, not prepared; what the source rejects cannot be read, for that reason."""
    inputs = []
    for item in source:
        if isinstance(item, Rejection):
            inputs.append(unusable_input(item.origin, item.reason, item.detail))
        else:
            metadata = {"captions": list(item.captions), "source": item.origin, "metadata": item.metadata}
            inputs.append(_streamed(item.name, partial(_item_blocks, item, max_seconds), partial(dict, metadata)))
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
    return _ahead(inputs, lambda clip: clip.read(sample_rate), skipped, threads)


def stream_ahead(
    inputs: Sequence[AudioInput], sample_rate: int, skipped: list[Skipped], *, seconds: float, threads: int = 2
) -> Iterator[tuple[AudioInput, ClipHead]]:
    """`read_ahead` for clips of any length: of one of more than `seconds`, the rest is still to be read.

    Reading the rest may raise AudioError, DatasetError or OSError.
    """
    return _ahead(inputs, lambda clip: _head(clip.blocks(sample_rate), seconds * sample_rate), skipped, threads)


def _ahead(
    inputs: Sequence[AudioInput], read: Callable[[AudioInput], _T], skipped: list[Skipped], threads: int
) -> Iterator[tuple[AudioInput, _T]]:
    with ThreadPoolExecutor(threads) as pool:
        remaining = iter(inputs)
        pending: list[tuple[AudioInput, Future[_T]]] = []
        try:
            pending += [(clip, pool.submit(read, clip)) for clip in islice(remaining, 4 * threads)]
            while pending:
                clip, future = pending.pop(0)
                pending += [(later, pool.submit(read, later)) for later in islice(remaining, 1)]
                try:
                    result = future.result()
                except (AudioError, DatasetError, OSError) as error:
                    skipped.append(Skipped(clip.name, str(error)))
                else:
                    yield clip, result
        finally:
            for _, future in pending:
                future.cancel()


def _head(blocks: Iterator[np.ndarray], limit: float) -> ClipHead:
    head: list[np.ndarray] = []
    samples = 0
    for block in blocks:
        head.append(block)
        samples += len(block)
        if samples > limit:
            return ClipHead(np.concatenate(head), blocks)
    return ClipHead(np.concatenate(head), None)


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


def _streamed(
    name: str, stream: Callable[[int], Iterator[np.ndarray]], metadata: Callable[[], dict[str, Any]] = dict
) -> AudioInput:
    return AudioInput(name, lambda sample_rate: np.concatenate(list(stream(sample_rate))), metadata, stream)


def _item_blocks(item: ClipItem, max_seconds: float, sample_rate: int) -> Iterator[np.ndarray]:
    if isinstance(item.audio, RenderedAudio):
        raise DatasetError(f"{item.name}: generated clips have to be prepared first")
    with _with_hint(), item.audio.open() as sound:
        yield from _sound_blocks(sound, item.name, max_seconds, sample_rate)


def _file_blocks(path: Path, max_seconds: float, sample_rate: int) -> Iterator[np.ndarray]:
    with _with_hint(), open_audio(path) as sound:
        yield from _sound_blocks(sound, str(path), max_seconds, sample_rate)


def _sound_blocks(sound: Any, name: str, max_seconds: float, sample_rate: int) -> Iterator[np.ndarray]:
    samples = 0
    for block in mono_blocks(sound, sample_rate):
        samples += len(block)
        # Checked while reading, because the headers of some formats do not have the length.
        if samples > max_seconds * sample_rate:
            detail = f"more than {max_seconds:g} s; cut it into parts, or raise --max-seconds"
            raise AudioError("too_long", detail)
        yield block
    log_notes(sound, name)
    if not samples:
        raise AudioError("no_samples", "0 samples")


@contextmanager
def _with_hint() -> Iterator[None]:
    """Adds to the error of an unreadable file how to convert it."""
    try:
        yield
    except AudioError as error:
        if error.reason == "unreadable" and CONVERT_HINT not in error.detail:
            raise AudioError(error.reason, f"{error.detail}; if it plays elsewhere, {CONVERT_HINT}") from error
        raise


def _clip_blocks(index: ClipIndex, clip: int, sample_rate: int) -> Iterator[np.ndarray]:
    return audio_blocks(index.read_audio(clip), sample_rate)
