"""Generated captions of audio files and datasets, with their reference captions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from slap_fast.config.model import ModelConfig
from slap_fast.inference.audio_inputs import AudioInput, Skipped, batch_by_duration, read_ahead
from slap_fast.runtime.progress import progress_bar

BATCH_SECONDS = 640.0
"""Seconds of audio captioned at a time: 64 clips of 10 s."""


class Captioner(Protocol):
    @property
    def config(self) -> ModelConfig: ...

    def caption(
        self, audio: Sequence[Any], *, sampling_rate: float, beam_size: int, length_penalty: float, max_length: int
    ) -> list[str]: ...

    def require(self, part: str) -> None: ...


@dataclass(frozen=True)
class GeneratedCaption:
    name: str
    caption: str
    references: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def generate_captions(
    model: Captioner,
    inputs: Sequence[AudioInput],
    skipped: list[Skipped],
    *,
    beam_size: int = 1,
    length_penalty: float = 1.0,
    max_length: int = 64,
    progress: bool = False,
) -> Iterator[GeneratedCaption]:
    """Caption clips in order, a batch at a time; unreadable clips are appended to `skipped`.

    `beam_size`, `length_penalty` and `max_length` are those of `SLAP.caption`.
    """
    model.require("caption_decoder")  # before audio is read
    sample_rate = model.config.mel.sample_rate
    with progress_bar(total=len(inputs), desc="caption", unit="clip", disable=not progress) as bar:
        for batch in batch_by_duration(read_ahead(inputs, sample_rate, skipped), sample_rate, BATCH_SECONDS):
            captions = model.caption(
                [waveform for _, waveform in batch],
                sampling_rate=sample_rate,
                beam_size=beam_size,
                length_penalty=length_penalty,
                max_length=max_length,
            )
            for (clip, _), caption in zip(batch, captions, strict=True):
                yield GeneratedCaption(clip.name, caption, tuple(clip.metadata().get("captions", ())))
            bar.update(len(batch))
