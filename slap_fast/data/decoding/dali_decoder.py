"""DALI decoder: decodes clips with NVIDIA DALI on native CPU threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slap_fast.data.decoding.decoder import Blob, Crop, DecodeFailure
from slap_fast.data.decoding.flac_batch import complete, first_frame
from slap_fast.data.decoding.soundfile_decoder import SoundfileDecoder
from slap_fast.errors import MissingExtraError

logger = logging.getLogger(__name__)


class DaliDecoder:
    """DALI's `decoders.audio`, fed with batches of files in memory. Runs on the CPU; needs no GPU.

    DALI gets only uncropped FLAC files whose header has the expected sample rate, channel count and length. All others
    go to soundfile, which decodes them or reports what is wrong. If one file turns out damaged, DALI fails the whole
    batch, which soundfile then decodes again clip by clip.
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
        # Feeding and running must not interleave: two loaders may share a decoder.
        self._lock = threading.Lock()

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """See `slap_fast.data.decoding.Decoder.decode`."""
        crops = crops or [None] * len(blobs)
        decoded: list[Tensor | None] = [None] * len(blobs)
        suitable = [
            item
            for item, (blob, count, crop) in enumerate(zip(blobs, samples, crops, strict=True))
            if crop is None and first_frame(blob, self.sample_rate, count)
        ]
        for start in range(0, len(suitable), self.max_batch_size):
            items = suitable[start : start + self.max_batch_size]
            waveforms = self._run([blobs[item] for item in items], [samples[item] for item in items])
            for item, waveform in zip(items, waveforms, strict=True):
                decoded[item] = waveform
        return complete(decoded, self._soundfile, blobs, samples, crops)

    def _run(self, blobs: list[Blob], samples: list[int]) -> Sequence[Tensor | None]:
        """Decodes one DALI batch to contiguous waveforms, or to None for every clip if one is damaged."""
        encoded = [np.frombuffer(blob, dtype=np.uint8) for blob in blobs]
        try:
            with self._lock:
                self._pipeline.feed_input("blobs", encoded)
                (decoded,) = self._pipeline.run()
        except Exception as error:  # DALI does not document which exceptions its operators raise.
            logger.debug("DALI could not decode a batch, decoding it with soundfile: %s", error)
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
    # exec_dynamic is DALI's default, and required here: this executor survives an exception of an operator, and every
    # run gets its own output buffers.
    pipeline = Pipeline(
        batch_size=max_batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        # no_copy: the caller keeps the files in memory until the run is done.
        blobs = fn.external_source(name="blobs", device="cpu", dtype=types.DALIDataType.UINT8, ndim=1, no_copy=True)
        # downmix flattens [samples, 1] to [samples]; the input is always mono.
        waveforms, _ = fn.decoders.audio(blobs, dtype=types.DALIDataType.FLOAT, downmix=True)
        pipeline.set_outputs(waveforms)
    pipeline.build()
    return pipeline


def _to_torch(decoded: Any, total: int) -> Tensor:
    """`[total]` float32: a DALI batch, without a copy if it is contiguous (as in all versions seen)."""
    try:
        return torch.from_dlpack(decoded.as_reshaped_tensor([total]))
    except RuntimeError:
        return torch.cat([torch.from_numpy(np.array(decoded.at(item))) for item in range(len(decoded))])
