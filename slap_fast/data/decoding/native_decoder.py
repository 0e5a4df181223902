"""Native decoder: decodes FLAC with the project's own C++ code, `slap_fast.ops.decode_flac`, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slap_fast.data.decoding.decoder import Blob, Crop, DecodeFailure
from slap_fast.data.decoding.flac_batch import FlacBatch, complete, suitable
from slap_fast.data.decoding.soundfile_decoder import SoundfileDecoder
from slap_fast.ops import dispatch
from slap_fast.ops.decode_flac.into import decode_flac_into
from slap_fast.runtime.buffer_pool import BufferPool


class NativeDecoder:
    """Decodes mono FLAC natively, and leaves all other files to soundfile.

    A crop decodes only its own frames, by the seek table that `slap-fast prepare` writes. soundfile decodes crops of
    files without one, and once more every file that native code finds damaged, so that the reason is that of the other
    decoders.
    """

    def __init__(self, threads: int = 2, *, sample_rate: int = 16_000, pin_memory: bool = False) -> None:
        """
        Raises:
            ValueError: `threads` is not positive.
            CannotServeError: the native module is not available.
        """
        self._soundfile = SoundfileDecoder(threads, sample_rate=sample_rate, pin_memory=pin_memory)
        dispatch.select("decode_flac", "native", device=torch.device("cpu"))
        self.threads = threads
        self.sample_rate = sample_rate
        self._buffers = BufferPool()  # for files; soundfile's decoder has the memory of waveforms

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """See `slap_fast.data.decoding.Decoder.decode`."""
        crops = crops or [None] * len(blobs)
        decoded: list[Tensor | None] = [None] * len(blobs)
        items = suitable(blobs, samples, crops, self.sample_rate)
        if items:
            data = torch.from_numpy(self._buffers.take(sum(len(blobs[item]) for item in items)))
            batch = FlacBatch.pack(items, blobs, samples, crops, data)
            lengths = batch.samples.tolist()
            waveform = self._soundfile.allocate(sum(lengths))
            errors = decode_flac_into(
                waveform, data, batch.offsets, batch.samples, starts=batch.starts, threads=self.threads
            )
            for item, error, clip in zip(items, errors.tolist(), waveform.split(lengths), strict=True):
                decoded[item] = None if error else clip
        return complete(decoded, self._soundfile, blobs, samples, crops)
