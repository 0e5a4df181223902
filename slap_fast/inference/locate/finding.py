"""Location of texts in a recording: overlapping windows of a stream, dense embeddings, curves, events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from slap_fast.inference.locate.background import QueryScorer
from slap_fast.inference.locate.events import Event, EventRule, find_events
from slap_fast.inference.locate.growing_rows import GrowingRows
from slap_fast.inference.locate.overview import MelOverview
from slap_fast.inference.locate.queries import checked_queries
from slap_fast.models.long_audio import DenseWindow, dense_windows
from slap_fast.models.slap import SLAP
from slap_fast.models.texts import split_texts

_WINDOWS_ON_GPU = 16  # encoded together


@dataclass(frozen=True)
class Located:
    """What was found in a recording of C columns of patches, by Q queries.

    Attributes:
        queries: Q texts.
        seconds: duration of the recording.
        column_seconds: duration of a column; 0.16 for the paper's model.
        similarity: `[C, Q]` float32 cosine similarities.
        probability: `[C, Q]` float32 probabilities against the background (`QueryScorer`).
        rule: how events were made of them.
        events: by start, then by query.
        overview: spectrogram of bounded size; None if none was asked for.
        others: texts that were added to the background.
    """

    queries: tuple[str, ...]
    seconds: float
    column_seconds: float
    similarity: np.ndarray
    probability: np.ndarray
    rule: EventRule
    events: tuple[Event, ...]
    overview: MelOverview | None = None
    others: tuple[str, ...] = ()

    @property
    def times(self) -> np.ndarray:
        """`[C]` float64 centers of the columns, in seconds."""
        return (np.arange(len(self.similarity)) + 0.5) * self.column_seconds

    def with_rule(self, rule: EventRule) -> Located:
        """The same curves, with the events of another rule."""
        events = [
            event
            for number, query in enumerate(self.queries)
            for event in find_events(
                query,
                self.probability[:, number],
                self.similarity[:, number],
                column_seconds=self.column_seconds,
                seconds=self.seconds,
                rule=rule,
            )
        ]
        order = {query: number for number, query in enumerate(self.queries)}
        events.sort(key=lambda event: (event.start, order[event.query]))
        return replace(self, rule=rule, events=tuple(events))


def locate(
    model: SLAP,
    blocks: Iterable[np.ndarray],
    queries: str | Sequence[str],
    *,
    rule: EventRule | None = None,
    others: Sequence[str] = (),
    overview: bool = False,
    progress: Callable[[float], object] = lambda seconds: None,
) -> Located:
    """Find the events that texts describe.

    Memory does not grow with the recording, except for the curves: 8 bytes for each column and query, which is 2 MB for
    ten hours, and at most three times as much while they grow. Over 1,200 windows, a process grew by 2 MB.

    Args:
        blocks: `[n]` float32 mono samples of the recording in order, at the model's rate: `AudioInput.blocks` of
            `slap_fast.inference.audio_inputs`, or a list of one array.
        queries: one or more texts, each once.
        rule: None: the default.
        others: texts that are added to the background.
        overview: keep a spectrogram for a plot.
        progress: called with the seconds of audio that are done since the last call.

    Raises:
        ValueError: no query, an empty one, the same one twice, or no samples.
        ModelError: the model was trained without the contrastive objective.
        AudioError: of `blocks`.
    """
    texts = checked_queries(split_texts(queries))
    model.require("text_encoder")
    config = model.config
    rate = config.mel.sample_rate
    scorer = QueryScorer.of(model, texts, others)
    picture = MelOverview(config.mel) if overview else None
    similarity, probability = GrowingRows(len(texts)), GrowingRows(len(texts))
    samples = 0

    def counted() -> Iterator[Tensor]:
        nonlocal samples
        for block in blocks:
            samples += len(block)
            yield torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32))

    windows = dense_windows(config, counted())
    at_once = 1 if model.device.type == "cpu" else _WINDOWS_ON_GPU
    while batch := list(islice(windows, at_once)):
        encoded = model.encode_audio([window.samples for window in batch], sampling_rate=rate, dense=True, long="whole")
        for window, columns in zip(batch, encoded, strict=True):
            used = columns[window.keep].numpy()
            similarity.add(scorer.similarity(used))
            probability.add(scorer.probability(used))
            if picture is not None:
                picture.add(_frames_of(window, config.audio.patch_frames))
            progress(len(used) * config.column_seconds)
    if not samples:
        raise ValueError("the recording holds no samples")
    found = Located(
        tuple(texts),
        samples / rate,
        config.column_seconds,
        similarity.all(),
        probability.all(),
        rule or EventRule(),
        (),
        picture,
        tuple(others),
    )
    return found.with_rule(found.rule)


def _frames_of(window: DenseWindow, patch_frames: int) -> tuple[Tensor, slice]:
    """Samples of a window, and the frames of its used columns."""
    return window.samples, slice(window.begin * patch_frames, window.end * patch_frames)
