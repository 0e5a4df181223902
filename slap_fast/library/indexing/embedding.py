"""Embedding of recordings as streams: decoding runs ahead in threads while the model embeds windows.

A recording is never in memory as a whole. The same code runs in this process, for a GPU or a few recordings, and in
worker processes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from slap_fast.errors import ModelError
from slap_fast.library.database import WindowRow
from slap_fast.library.indexing.decoding import Decoded, Decoder, End, Window
from slap_fast.library.indexing.jobs import Embedded, Event, Failed, Finished, Job

_BATCH_SECONDS_GPU = 960.0


class AudioModel(Protocol):
    """What embedding needs of `SLAP`."""

    @property
    def device(self) -> Any: ...
    @property
    def config(self) -> Any: ...

    def encode_audio(self, audio: Any, *, sampling_rate: float) -> Any: ...


def embed_jobs(model: AudioModel, jobs: Iterable[Job], *, threads: int = 1) -> Generator[list[Event], None, None]:
    """Embed recordings: the events of one call of the model at a time.

    Those of one recording are in order; those of several mix if `threads` is above 1.

    On a CPU results depend on nothing else that is indexed. On a GPU the windows that are packed together change
    embeddings by rounding.

    Args:
        model: in eval mode.
        jobs: drawn by the decoding threads.
        threads: that decode.
    """
    # Not at the top: an update without new files needs no PyTorch.
    from slap_fast.models.encoding import CPU_BATCH_SECONDS

    decoder = Decoder(jobs, int(model.config.mel.sample_rate), model.config.max_duration, threads)
    events = _Events(model)
    seconds = CPU_BATCH_SECONDS if model.device.type == "cpu" else _BATCH_SECONDS_GPU
    try:
        while batch := decoder.take(seconds):
            if found := list(events.of(batch)):  # else a whole recording alone, which its end reports
                yield found
    finally:
        decoder.stop()


class _Events:
    def __init__(self, model: AudioModel) -> None:
        self._model = model
        self._rate = int(model.config.mel.sample_rate)
        self._wholes: dict[Job, WindowRow] = {}
        self._failed: set[Job] = set()

    def of(self, batch: Sequence[Decoded]) -> Iterator[Event]:
        windows = [item for item in batch if isinstance(item, Window) and item.job not in self._failed]
        embeddings = dict(zip(map(id, windows), self._encode([window.samples for window in windows]), strict=True))
        rows: list[WindowRow] = []
        last: Window | None = None
        for item in batch:
            if isinstance(item, Window) and item.job in self._failed:
                continue
            follows = (
                isinstance(item, Window) and last is not None and (item.job, item.number) == (last.job, last.number + 1)
            )
            if last is not None and not follows:
                yield Embedded(last.job, last.number + 1 - len(rows), rows, last.declared)
                rows, last = [], None
            if isinstance(item, Window):
                embedding = embeddings[id(item)]
                if isinstance(embedding, Failed):
                    self._failed.add(item.job)
                    yield embedding._replace(job=item.job)
                    continue
                row = self._row(item, embedding)
                if item.number < 0:
                    self._wholes[item.job] = row
                else:
                    rows.append(row)
                    last = item
            elif item.job in self._failed:
                self._failed.discard(item.job)
            elif isinstance(item, End):
                yield Finished(item.job, item.windows, item.samples / self._rate, self._wholes.pop(item.job, None))
            else:
                self._wholes.pop(item.job, None)
                yield item
        if last is not None:
            yield Embedded(last.job, last.number + 1 - len(rows), rows, last.declared)

    def _row(self, window: Window, embedding: np.ndarray) -> WindowRow:
        start = window.begin / self._rate
        return WindowRow(start, (window.begin + len(window.samples)) / self._rate, window.whole, embedding)

    def _encode(self, clips: Sequence[np.ndarray]) -> list[np.ndarray | Failed]:
        """`[D]` float32 of each clip, or why there is none."""
        if not clips:
            return []
        try:
            return list(self._model.encode_audio(list(clips), sampling_rate=self._rate).numpy())
        except ValueError as error:
            if len(clips) == 1:
                # Samples out of range, or an embedding that is not finite.
                reason = "not_finite" if isinstance(error, ModelError) else "out_of_range"
                return [Failed(_NOBODY, reason, str(error))]
        return [embedding for clip in clips for embedding in self._encode([clip])]


_NOBODY = Job(-1, "")
