"""Encoded clips to waveforms: what a decoder promises, and the one that soundfile serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soundfile
import torch
from torch import Tensor

from slap_fast.audio.files import AudioBytes
from slap_fast.ops.waveform_stats import waveform_stats
from slap_fast.runtime.buffer_pool import BufferPool

Crop = tuple[int, int]
"""The samples `[start, end)` of a clip."""

Blob = bytes | memoryview
"""An audio file."""

PREPARE = "run `slap-fast prepare` on the source"
# libsndfile's claim for a file whose header does not say.
_UNKNOWN_LENGTH = 2**63 - 1


@dataclass(frozen=True)
class DecodeFailure:
    """Why a clip has no waveform."""

    reason: str


class Decoder(Protocol):
    """Decodes mono clips of one sample rate. All decoders give the same bits, and drop the same clips."""

    @property
    def sample_rate(self) -> int: ...

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """Decode audio files.

        Args:
            blobs: N files; FLAC at best, and whatever else soundfile reads.
            samples: the length that each must have. It bounds the memory that a file with a lying header can claim.
            crops: for each file the stretch that is wanted, None for all of it. Nothing else takes memory, and what
                follows it is not looked at.

        Returns:
            For each clip a `[samples]` float32 tensor in [-1, 1], or as long as its crop; or why there is none: not
            audio, damaged, empty, not finite, or of another rate, channel count or length. No content raises. Clips
            that succeed lie end to end in memory where that is free: `pack_waveforms` then copies nothing.
        """
        ...


class SoundfileDecoder:
    """libsndfile on a pool of threads; it releases the GIL.

    In the builds that come with soundfile (seen in 0.14.0), 40 % of the time goes into `flac_buffer_copy`, which moves
    sample by sample; DALI's build of the same library is 1.4 times as fast.
    """

    def __init__(self, threads: int = 2, *, sample_rate: int = 16_000, pin_memory: bool = False) -> None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        self.threads = threads
        self.sample_rate = sample_rate
        self._pin_memory = pin_memory
        self._buffers = BufferPool()

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """See `Decoder.decode`."""
        if not blobs:
            return []
        stretches = [crop or (0, count) for crop, count in zip(crops or [None] * len(blobs), samples, strict=True)]
        lengths = [end - start for start, end in stretches]
        waveforms = self._packed(sum(lengths)).split(lengths)
        reasons: list[str | None] = [None] * len(blobs)
        waiting = deque(range(len(blobs)))

        def work() -> None:
            # A thread takes the next clip itself: a future for each would cost more.
            while True:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                reasons[item] = self._read(blobs[item], samples[item], stretches[item], waveforms[item])

        threads = min(self.threads, len(blobs))
        # A pool per batch costs far less than a batch, and leaves no thread behind.
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
        return [
            waveform if reason is None else DecodeFailure(reason)
            for waveform, reason in zip(waveforms, reasons, strict=True)
        ]

    def _packed(self, samples: int) -> Tensor:
        """`[samples]` float32 of any content."""
        if self._pin_memory:
            # PyTorch keeps page-locked memory for the next batch, once no copy from it is under way.
            return torch.empty(samples, dtype=torch.float32, pin_memory=True)
        return torch.from_numpy(self._buffers.take(4 * samples).view(np.float32))

    def _read(self, blob: Blob, samples: int, stretch: Crop, waveform: Tensor) -> str | None:
        """Fill `waveform` with that stretch of the clip, or say why not."""
        if not blob:
            return "the audio is empty: 0 bytes"
        if not samples:
            return "the clip has no samples"
        try:
            with soundfile.SoundFile(AudioBytes(blob)) as file:
                if (reason := self._mismatch(file, samples)) is not None:
                    return reason
                if stretch[0]:
                    file.seek(stretch[0])
                end = stretch[0] + len(file.read(out=waveform.numpy()))
                # FLAC holds integers, which are always finite.
                may_be_nonfinite = file.format != "FLAC"
        except soundfile.LibsndfileError as error:
            return f"the audio is not readable: {error.error_string}"
        except (RuntimeError, ValueError) as error:
            return f"the audio is not readable: {error}"
        if end != stretch[1]:
            return f"the audio ends after {end} samples, the index says {samples}"
        if may_be_nonfinite and (bad := int(waveform_stats(waveform, torch.tensor([0, len(waveform)])).nonfinite)):
            return f"{bad} of {len(waveform)} samples are NaN or infinite"
        return None

    def _mismatch(self, file: soundfile.SoundFile, samples: int) -> str | None:
        if file.samplerate != self.sample_rate:
            return f"the audio is at {file.samplerate} Hz, not {self.sample_rate} Hz; {PREPARE}"
        if file.channels != 1:
            return f"the audio has {file.channels} channels, not one; {PREPARE}"
        if file.frames == _UNKNOWN_LENGTH:
            return f"the audio's header does not say its length; {PREPARE}"
        if file.frames != samples:
            return f"the audio has {file.frames} samples, the index says {samples}; {PREPARE}"
        return None
