"""Decoder interface: encoded audio files in memory to mono float32 waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Crop = tuple[int, int]
"""The samples `[start, end)` of a clip."""

Blob = bytes | memoryview
"""An encoded audio file."""

PREPARE = "run `slap-fast prepare` on the source"
"""The advice at the end of the reason of a clip that was not prepared."""


@dataclass(frozen=True)
class DecodeFailure:
    """The reason why a clip has no waveform."""

    reason: str


class Decoder(Protocol):
    """Decodes mono clips of one sample rate. All decoders return the same bits and fail on the same clips."""

    @property
    def sample_rate(self) -> int: ...

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """Decode audio files.

        Args:
            blobs: N files, FLAC or any other format that soundfile reads.
            samples: the expected length of each. It bounds the memory that a file with a wrong header can claim.
            crops: for each file the part to decode, None for all of it. Only the crop takes memory, and the samples
                after it are not checked.

        Returns:
            For each clip a `[samples]` float32 tensor in [-1, 1] (of the crop's length if there is one), or the reason
            why there is none: not audio, damaged, empty, not finite, or of another sample rate, channel count or
            length. No content raises. Where it costs nothing, the waveforms are contiguous in memory, so that
            `pack_waveforms` does not copy.
        """
        ...
