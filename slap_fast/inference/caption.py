"""Generated captions beside the reference ones, as JSON lines.

CIDEr and SPICE are not measured yet: they need a scorer that keeps to the published implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from slap_fast.config.model import ModelConfig
from slap_fast.inference.embed import AudioInput, Skipped, batches_of_seconds, read_ahead
from slap_fast.runtime.progress import progress_bar

BATCH_SECONDS = 30.0
"""Audio captioned at a time: short, so that captions appear as they are made."""


class Captioner(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def caption(self, audio: Sequence[Any], *, sampling_rate: float) -> list[str]: ...


@dataclass(frozen=True)
class GeneratedCaption:
    name: str
    caption: str
    references: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def generate_captions(
    model: Captioner, inputs: Sequence[AudioInput], skipped: list[Skipped], *, progress: bool = False
) -> Iterator[GeneratedCaption]:
    """Caption clips in order, as they are read; those that cannot be read go to `skipped`."""

    sample_rate = model.config.mel.sample_rate
    with progress_bar(total=len(inputs), desc="caption", unit="clip", disable=not progress) as bar:
        for batch in batches_of_seconds(read_ahead(inputs, sample_rate, skipped), sample_rate, BATCH_SECONDS):
            captions = model.caption([waveform for _, waveform in batch], sampling_rate=sample_rate)
            for (clip, _), caption in zip(batch, captions, strict=True):
                yield GeneratedCaption(clip.name, caption, tuple(clip.metadata().get("captions", ())))
            bar.update(len(batch))
