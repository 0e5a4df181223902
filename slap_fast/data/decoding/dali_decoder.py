"""Decoding by NVIDIA DALI, on native CPU threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slap_fast.data.decoding.soundfile_decoder import Blob, Crop, DecodeFailure, SoundfileDecoder
from slap_fast.errors import MissingExtraError

logger = logging.getLogger(__name__)


class DaliDecoder:
    """DALI's `decoders.audio`, fed batch by batch with files in memory.

    DALI sees only FLAC whose header promises exactly what is wanted, and wanted whole; anything else goes to soundfile,
    which reads it or names what is wrong. A file that breaks its promise costs DALI the whole batch, so that batch too
    is decoded again by soundfile, clip by clip. A DALI audio decoder needs no GPU, and has no use for one.
    """

    def __init__(
        self, threads: int = 2, max_batch_size: int = 256, *, sample_rate: int = 16_000, pin_memory: bool = False
    ) -> None:
        """
        Raises:
            ValueError: `threads` or `max_batch_size` is not positive.
            MissingExtraError: DALI cannot be imported.
        """
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size is {max_batch_size}; it must be at least 1")
        self._soundfile = SoundfileDecoder(threads, sample_rate=sample_rate, pin_memory=pin_memory)
        self.sample_rate = sample_rate
        self.max_batch_size = max_batch_size
        self._pipeline = _build_pipeline(threads, max_batch_size)
        # Feeding and running belong together; two loaders may share a decoder.
        self._lock = threading.Lock()

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """See `slap_fast.data.decoding.Decoder.decode`."""
        crops = crops or [None] * len(blobs)
        decoded: list[Tensor | DecodeFailure | None] = [None] * len(blobs)
        promising = [
            item
            for item, (blob, count, crop) in enumerate(zip(blobs, samples, crops, strict=True))
            if crop is None and _promises(blob, self.sample_rate, count)
        ]
        for start in range(0, len(promising), self.max_batch_size):
            items = promising[start : start + self.max_batch_size]
            waveforms = self._run([blobs[item] for item in items], [samples[item] for item in items])
            for item, waveform in zip(items, waveforms, strict=True):
                decoded[item] = waveform
        rest = [item for item, waveform in enumerate(decoded) if waveform is None]
        repaired = self._soundfile.decode(
            [blobs[item] for item in rest], [samples[item] for item in rest], [crops[item] for item in rest]
        )
        for item, outcome in zip(rest, repaired, strict=True):
            decoded[item] = outcome
        return [outcome for outcome in decoded if outcome is not None]

    def _run(self, blobs: list[Blob], samples: list[int]) -> Sequence[Tensor | None]:
        """One DALI batch: waveforms end to end in memory, or None for every clip if any is damaged."""
        encoded = [np.frombuffer(blob, dtype=np.uint8) for blob in blobs]
        try:
            with self._lock:
                self._pipeline.feed_input("blobs", encoded)
                (decoded,) = self._pipeline.run()
        except Exception as error:  # DALI does not say which exceptions its operators raise.
            logger.debug("DALI could not decode a batch, soundfile takes it: %s", error)
            return [None] * len(blobs)
        if [tuple(shape) for shape in decoded.shape()] != [(count,) for count in samples]:
            return [None] * len(blobs)
        return _to_torch(decoded, sum(samples)).split(samples)


def _build_pipeline(threads: int, max_batch_size: int) -> Any:
    try:
        from nvidia.dali import Pipeline, fn, types
    except ImportError as error:
        raise MissingExtraError(
            f"the DALI decoder needs NVIDIA DALI ({error}); pip install 'slap-fast[dali]', "
            "or choose loading.decoder=soundfile"
        ) from error
    # The dynamic executor (DALI's default, named because all rests on it) survives an operator's exception, and
    # gives every run output buffers of its own.
    pipeline = Pipeline(
        batch_size=max_batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        # The files stay where they are: whoever runs the pipeline holds them until it is done.
        blobs = fn.external_source(name="blobs", device="cpu", dtype=types.DALIDataType.UINT8, ndim=1, no_copy=True)
        # downmix flattens [samples, 1] to [samples]; only mono gets here.
        waveforms, _ = fn.decoders.audio(blobs, dtype=types.DALIDataType.FLOAT, downmix=True)
        pipeline.set_outputs(waveforms)
    pipeline.build()
    return pipeline


def _to_torch(decoded: Any, total: int) -> Tensor:
    """`[total]` float32: a DALI batch without a copy, where it is contiguous (as it is in all versions seen)."""
    try:
        return torch.from_dlpack(decoded.as_reshaped_tensor([total]))
    except RuntimeError:
        return torch.cat([torch.from_numpy(np.array(decoded.at(item))) for item in range(len(decoded))])


def _promises(blob: Blob, sample_rate: int, samples: int) -> bool:
    """Whether it is FLAC whose STREAMINFO block (RFC 9639, 8.2) says mono, this rate and this many samples.

    A header that leaves the length open, or lies, would have DALI allocate all that it claims.
    """
    if len(blob) < 42 or blob[:4] != b"fLaC" or blob[4] & 0x7F != 0 or samples == 0:
        return False
    packed = int.from_bytes(blob[18:26], "big")
    channels = (packed >> 41 & 0b111) + 1
    return (packed >> 44, channels, packed & (2**36 - 1)) == (sample_rate, 1, samples)
