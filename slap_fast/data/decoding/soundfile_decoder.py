"""soundfile decoder: decodes clips with libsndfile on a thread pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile
import torch
from torch import Tensor

from slap_fast.audio.containers import ClampedBytesIO
from slap_fast.data.decoding.decoder import PREPARE, Blob, Crop, DecodeFailure
from slap_fast.ops.waveform_stats import waveform_stats
from slap_fast.runtime.buffer_pool import BufferPool

# Frame count that libsndfile reports if the header has none.
_UNKNOWN_LENGTH = 2**63 - 1


class SoundfileDecoder:
    """Decodes with libsndfile on a thread pool; libsndfile releases the GIL.

    In the builds that soundfile ships (seen in 0.14.0), 40 % of the time goes into `flac_buffer_copy`, which copies
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
        ranges = [crop or (0, count) for crop, count in zip(crops or [None] * len(blobs), samples, strict=True)]
        lengths = [end - start for start, end in ranges]
        waveforms = self.allocate(sum(lengths)).split(lengths)
        reasons: list[str | None] = [None] * len(blobs)
        waiting = deque(range(len(blobs)))

        def work() -> None:
            # Each thread takes the next clip from the queue: one future per clip would cost more.
            while True:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                reasons[item] = self._read(blobs[item], samples[item], ranges[item], waveforms[item])

        threads = min(self.threads, len(blobs))
        # A pool per batch costs far less than decoding the batch, and leaves no thread behind.
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
        return [
            waveform if reason is None else DecodeFailure(reason)
            for waveform, reason in zip(waveforms, reasons, strict=True)
        ]

    def allocate(self, samples: int) -> Tensor:
        """`[samples]` float32 for waveforms, uninitialized; page-locked if the decoder was made so."""
        if self._pin_memory:
            # PyTorch caches page-locked memory and reuses it once all copies from it are done.
            return torch.empty(samples, dtype=torch.float32, pin_memory=True)
        return torch.from_numpy(self._buffers.take(4 * samples).view(np.float32))

    def _read(self, blob: Blob, samples: int, crop: Crop, waveform: Tensor) -> str | None:
        """Fills `waveform` with the crop of the clip; returns the reason if that fails."""
        if not blob:
            return "the audio is empty: 0 bytes"
        if not samples:
            return "the clip has no samples"
        try:
            with (soundfile.SoundFile if crop[1] == samples else _Crop)(ClampedBytesIO(blob)) as file:
                if (reason := self._mismatch(file, samples)) is not None:
                    return reason
                if crop[0]:
                    file.seek(crop[0])
                end = crop[0] + len(file.read(out=waveform.numpy()))
                # FLAC stores integers, which are always finite.
                may_be_nonfinite = file.format != "FLAC"
        except soundfile.LibsndfileError as error:
            return f"the audio is not readable: {error.error_string}"
        except (RuntimeError, ValueError) as error:
            return f"the audio is not readable: {error}"
        if end != crop[1]:
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


class _Crop(soundfile.SoundFile):
    """A file of which a part is read, once.

    After each read of a seekable file, soundfile seeks to the sample behind it, which decodes the next frame: damage
    there would fail a crop that it does not touch.
    """

    def seekable(self) -> bool:
        return False
