"""Localization: similarity of text queries to a clip over time, and the annotated events of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from slap_fast.config.model import ModelConfig
from slap_fast.models.texts import split_texts
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig


class Localizer(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def similarity_over_time(self, audio: Any, text: str, *, sampling_rate: float) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Localization:
    """`similarity` `[C]` of `query` at `times` `[C]`, in seconds from the start of the clip."""

    query: str
    times: np.ndarray
    similarity: np.ndarray

    @property
    def peak(self) -> float:
        """Time of the highest similarity, in seconds."""
        return float(self.times[self.similarity.argmax()])


class EventSpan(NamedTuple):
    """A sound event from `start` to `end`, in seconds."""

    text: str
    start: float
    end: float


def events_of(metadata: Mapping[str, Any]) -> list[EventSpan]:
    """The events in a clip's metadata: a list `events` of `{"event": ..., "onset": ..., "duration": ...}` in seconds.

    The list is at the top level, or under `metadata`, where `slap-fast prepare` stores the source's own metadata. Names
    of synthetic events become the words of their captions; in other names underscores become spaces. Entries of any
    other form are ignored, since a dataset may use `events` for something else.
    """
    from slap_fast.synthetic import ALL_EVENTS

    spans = []
    source = metadata.get("metadata")
    events = metadata.get("events", source.get("events") if isinstance(source, dict) else None)
    for entry in events if isinstance(events, list) else ():
        if not isinstance(entry, dict) or not entry.keys() >= {"event", "onset", "duration"}:
            continue
        name = str(entry["event"])
        wording = ALL_EVENTS[name].wordings[0] if name in ALL_EVENTS else None
        text = f"{wording.subject} {wording.gerund}" if wording else name.replace("_", " ")
        spans.append(EventSpan(text, float(entry["onset"]), float(entry["onset"]) + float(entry["duration"])))
    return spans


def localize(model: Localizer, waveform: np.ndarray, queries: str | Sequence[str]) -> list[Localization]:
    """Similarity over time of each query to a clip of `[S]` samples at the model's sample rate."""
    curves = []
    for query in split_texts(queries):
        times, similarity = model.similarity_over_time(waveform, query, sampling_rate=model.config.mel.sample_rate)
        curves.append(Localization(query, _to_numpy(times), _to_numpy(similarity)))
    return curves


def mel_frames(waveform: np.ndarray, config: MelConfig) -> np.ndarray:
    """`[F, n_mels]` normalized log-mel frames of one clip, the input of the model."""
    cu_seqlens = torch.tensor([0, len(waveform)])
    return log_mel(torch.from_numpy(waveform), cu_seqlens, config).numpy()


def _to_numpy(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().float().cpu().numpy()
