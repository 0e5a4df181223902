"""When does a clip sound like a text: the similarity of a query to the audio features over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from slap_fast.config.model import ModelConfig
from slap_fast.models.arguments import split_texts
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig


class Localiser(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def similarity_over_time(self, audio: Any, text: str, *, sampling_rate: float) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Localisation:
    """`similarity` `[C]` of `query` at `times` `[C]`, in seconds from the start of the clip."""

    query: str
    times: np.ndarray
    similarity: np.ndarray

    @property
    def peak(self) -> float:
        """Time of the highest similarity, in seconds."""
        return float(self.times[self.similarity.argmax()])


class EventSpan(NamedTuple):
    """What sounds from `start` to `end`, in seconds."""

    text: str
    start: float
    end: float


def events_of(metadata: Mapping[str, Any]) -> list[EventSpan]:
    """The events that a clip's metadata lists as `{"event": ..., "onset": ..., "duration": ...}`, times in seconds.

    They are sought under `events`, at the top or in what `slap-fast prepare` keeps of the source under `metadata`.
    Synthetic events are worded as their captions word them; other names are taken as they are, but for underscores.
    Entries of another form, as datasets of one's own may have them, are passed over.
    """
    from slap_fast.synthetic import EVENTS

    spans = []
    source = metadata.get("metadata")
    events = metadata.get("events", source.get("events") if isinstance(source, dict) else None)
    for entry in events if isinstance(events, list) else ():
        if not isinstance(entry, dict) or not entry.keys() >= {"event", "onset", "duration"}:
            continue
        name = str(entry["event"])
        wording = EVENTS[name].wordings[0] if name in EVENTS else None
        text = f"{wording.subject} {wording.gerund}" if wording else name.replace("_", " ")
        spans.append(EventSpan(text, float(entry["onset"]), float(entry["onset"]) + float(entry["duration"])))
    return spans


def localise(model: Localiser, waveform: np.ndarray, queries: str | Sequence[str]) -> list[Localisation]:
    """Follow each of `queries` through a clip of `[S]` samples at the model's sample rate."""
    curves = []
    for query in split_texts(queries):
        times, similarity = model.similarity_over_time(waveform, query, sampling_rate=model.config.mel.sample_rate)
        curves.append(Localisation(query, _on_host(times), _on_host(similarity)))
    return curves


def mel_frames(waveform: np.ndarray, config: MelConfig) -> np.ndarray:
    """`[F, n_mels]` normalised log-mel frames of one clip: what the model sees."""
    cu_seqlens = torch.tensor([0, len(waveform)])
    return log_mel(torch.from_numpy(waveform), cu_seqlens, config).numpy()


def _on_host(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().float().cpu().numpy()
