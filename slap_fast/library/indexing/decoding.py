"""Decoding of recordings to windows, in threads that run ahead of the model."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np

from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import open_audio
from slap_fast.audio.waveform import mono_blocks
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.library.indexing.jobs import Failed, Job
from slap_fast.library.recording_audio import read_clip
from slap_fast.models.windows import cut_windows, window_lengths

_AHEAD = 48  # windows that a thread may be ahead of the model: 30 MB
_SHORT_FLAC_BYTES = 4 << 20
_PIECE = 1 << 18  # samples: 16 s at 16 kHz


class Window(NamedTuple):
    """A window of a recording that is to be embedded; number -1 is the whole recording, besides its windows."""

    job: Job
    number: int
    begin: int
    samples: np.ndarray  # [S] float32
    whole: bool
    declared: float | None  # seconds, of the recording, in its header


class End(NamedTuple):
    """The end of a recording: how many windows and samples it has."""

    job: Job
    windows: int
    samples: int


Decoded = Window | End | Failed


class Decoder:
    """Decodes jobs ahead; `take` has what is ready. Windows of one recording are in order."""

    def __init__(self, jobs: Iterable[Job], sample_rate: int, whole_seconds: float, threads: int) -> None:
        """
        Args:
            jobs: drawn in the threads.
            sample_rate: Hz, of the samples of windows.
            whole_seconds: recordings of at most this length are also embedded as a whole.
            threads: number of recordings that are decoded at once.
        """
        self._jobs = iter(jobs)
        self._drawing = threading.Lock()
        self._rate = sample_rate
        self._whole = int(whole_seconds * sample_rate)
        self._window, self._hop = (round(seconds * sample_rate) for seconds in window_lengths(whole_seconds))
        self._ready: queue.Queue[Decoded | BaseException | None] = queue.Queue(_AHEAD * threads)
        self._next: Window | None = None  # taken from the queue, and too much for the last batch
        self._datasets: OrderedDict[str, ClipIndex] = OrderedDict()
        self._opening = threading.Lock()  # another one: a thread may hold `_drawing` until there are more jobs
        self._stopped = threading.Event()
        self._running = threads
        for _ in range(threads):
            threading.Thread(target=self._work, name="slap-fast decoding", daemon=True).start()

    def take(self, seconds: float) -> list[Decoded]:
        """What is ready: windows of at most `seconds` in all, or a single longer one; nothing at the end."""
        taken: list[Decoded] = []
        left = seconds * self._rate
        if self._next is not None:
            left -= len(self._next.samples)
            taken.append(self._next)
            self._next = None
        while self._running:
            try:
                item = self._ready.get(block=not taken)
            except queue.Empty:
                break
            if item is None:
                self._running -= 1
                continue
            if isinstance(item, BaseException):
                self.stop()
                raise item
            if isinstance(item, Window):
                left -= len(item.samples)
                if left < 0 and any(isinstance(before, Window) for before in taken):
                    self._next = item
                    break
            taken.append(item)
        return taken

    def stop(self) -> None:
        """End the threads, which forget what they have decoded."""
        self._stopped.set()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._drawing:
                    job = next(self._jobs, None)
                if job is None:
                    break
                for item in self._decoded(job):
                    if not self._put(item):
                        return
        except BaseException as error:
            self._put(error)  # a bug, which must not end in silence
        self._put(None)

    def _put(self, item: Decoded | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False

    def _decoded(self, job: Job) -> Iterator[Decoded]:
        try:
            yield from self._windows(job)
        except AudioError as error:
            yield Failed(job, error.reason, error.detail)
        except DatasetError as error:
            yield Failed(job, "dataset", str(error))
        except OSError as error:
            yield Failed(job, "unreadable", error.strerror or str(error))
        except MemoryError as error:
            yield Failed(job, "out_of_memory", f"decoding it takes more memory than there is {error}")

    def _windows(self, job: Job) -> Iterator[Decoded]:
        with self._open(job) as sound:
            stream = _CountedBlocks(mono_blocks(sound, self._rate), self._whole)
            declared = sound.declared_seconds
            count = 0
            first = np.empty(0, np.float32)
            for begin, samples in cut_windows(stream, self._window, self._hop):
                if count == 0:
                    first = samples  # held back: whether it is the whole recording is known later
                elif count == 1 and job.wants(0):
                    yield Window(job, 0, 0, first, False, declared)
                if count and job.wants(count):
                    yield Window(job, count, begin, samples, False, declared)
                count += 1
            if not stream.samples:
                raise AudioError("no_samples", "0 samples")
            if count == 1 and job.wants(0):
                yield Window(job, 0, 0, first, True, declared)
            if count > 1 and stream.start and job.part == 0:
                yield Window(job, -1, 0, np.concatenate(stream.start), True, declared)
            yield End(job, count, stream.samples)

    def _open(self, job: Job) -> AbstractContextManager[AudioSource]:
        from slap_fast.library.indexing.short_flac import decode_short_flac  # which imports PyTorch

        file = self._clip(job) if job.member else job.path
        content = file if isinstance(file, bytes) else self._content_of_short_flac(job)
        is_long = len(content) > _SHORT_FLAC_BYTES
        short = None if is_long else decode_short_flac(content, self._rate)
        return open_audio(file, name=job.member) if short is None else nullcontext(short)

    def _content_of_short_flac(self, job: Job) -> bytes:
        """Nothing for other files, and for one that cannot be read."""
        if job.size > _SHORT_FLAC_BYTES or not job.path.endswith(".flac"):
            return b""
        try:
            with open(job.path, "rb") as file:
                return file.read(_SHORT_FLAC_BYTES + 1)  # it may have grown, and is too long then
        except OSError:
            return b""  # the stream reader says why

    def _clip(self, job: Job) -> bytes:
        with self._opening:
            index = self._datasets.get(job.path)
            if index is None:
                index = self._datasets[job.path] = ClipIndex.open(job.path)
                if len(self._datasets) > 4:
                    self._datasets.popitem(last=False)
        return read_clip(index, job.clip, job.member)


class _CountedBlocks:
    """Passes blocks on and counts their samples; keeps all of them while they are at most `keep`."""

    def __init__(self, blocks: Iterator[np.ndarray], keep: int) -> None:
        self.samples = 0
        self.start: list[np.ndarray] = []
        self._blocks = blocks
        self._keep = keep

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            # Pieces, because `cut_windows` copies what it holds with each.
            for begin in range(0, len(block), _PIECE):
                piece = block[begin : begin + _PIECE]
                self.samples += len(piece)
                if self.samples <= self._keep:
                    self.start.append(piece)
                else:
                    self.start = []
                yield piece
