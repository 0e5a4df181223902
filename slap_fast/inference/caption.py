"""Generated captions of audio files and datasets, with their reference captions.

CIDEr and SPICE are not computed yet: they need a scorer that follows the published implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from slap_fast.config.model import ModelConfig
from slap_fast.inference.audio_inputs import AudioInput, Skipped, batch_by_duration, read_ahead
from slap_fast.runtime.progress import progress_bar

BATCH_SECONDS = 30.0
"""Seconds of audio captioned at a time: short, so that captions are printed soon after they are generated."""


class Captioner(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def caption(self, audio: Sequence[Any], *, sampling_rate: float) -> list[str]: ...

    def require(self, part: str) -> None: ...


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
    """Caption clips in order; unreadable clips are appended to `skipped`."""
    model.require("caption_decoder")  # before audio is read
    sample_rate = model.config.mel.sample_rate
    with progress_bar(total=len(inputs), desc="caption", unit="clip", disable=not progress) as bar:
        for batch in batch_by_duration(read_ahead(inputs, sample_rate, skipped), sample_rate, BATCH_SECONDS):
            captions = model.caption([waveform for _, waveform in batch], sampling_rate=sample_rate)
            for (clip, _), caption in zip(batch, captions, strict=True):
                yield GeneratedCaption(clip.name, caption, tuple(clip.metadata().get("captions", ())))
            bar.update(len(batch))
