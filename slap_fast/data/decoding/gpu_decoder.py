"""GPU decoder: moves FLAC files to a GPU as they are and decodes them there with `slap_fast.ops.decode_flac`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.data.decoding.decoder import Blob, Crop, DecodeFailure, Decoder
from slap_fast.data.decoding.flac_batch import FlacBatch, complete, has_seek_table, suitable
from slap_fast.data.decoding.native_decoder import NativeDecoder
from slap_fast.data.decoding.soundfile_decoder import SoundfileDecoder
from slap_fast.ops.decode_flac import decode_flac


class GpuDecoder:
    """Decodes mono FLAC on a GPU; waveforms come out in its memory.

    The files take about a seventh of the bytes of their float32 samples, and so does the copy to the GPU. Files without
    a seek table, whose frames a GPU cannot find in parallel, are decoded on the CPU. So is, once more, every file that
    the GPU finds damaged, so that the reason is that of the other decoders.

    Copies and kernels run on a stream of their own, beside training. `decode` returns when they are done, so waveforms
    may be used on any stream. On another one than the default stream of the GPU, their user must call `record_stream`,
    as `Batch.to` does; otherwise their memory may be reused too early.
    """

    def __init__(self, device: torch.device | str, threads: int = 2, *, sample_rate: int = 16_000) -> None:
        """
        Args:
            device: the GPU. On "cpu" the same path runs without a GPU; `NativeDecoder` is faster there.
            threads: CPU threads, for files that the GPU does not decode.

        Raises:
            ValueError: `threads` is not positive.
        """
        self.sample_rate = sample_rate
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        on_cpu = SoundfileDecoder if native.unavailable() else NativeDecoder
        self._on_cpu: Decoder = on_cpu(threads, sample_rate=sample_rate, pin_memory=self._stream is not None)

    def decode(
        self, blobs: Sequence[Blob], samples: Sequence[int], crops: Sequence[Crop | None] | None = None
    ) -> list[Tensor | DecodeFailure]:
        """See `slap_fast.data.decoding.Decoder.decode`. The waveforms are on the GPU."""
        crops = crops or [None] * len(blobs)
        decoded: list[Tensor | None] = [None] * len(blobs)
        items = [item for item in suitable(blobs, samples, crops, self.sample_rate) if has_seek_table(blobs[item])]
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if items:
                size = sum(len(blobs[item]) for item in items)
                # PyTorch caches page-locked memory and reuses it once all copies from it are done.
                data = torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)
                for item, clip in self._decode(FlacBatch.pack(items, blobs, samples, crops, data)):
                    decoded[item] = clip
            outcomes = complete(decoded, self._on_cpu, blobs, samples, crops)
            moved = [self._moved(outcome) if isinstance(outcome, Tensor) else outcome for outcome in outcomes]
            if self._stream is not None:
                self._stream.synchronize()
        return moved

    def _decode(self, batch: FlacBatch) -> list[tuple[int, Tensor]]:
        """The intact clips, with their places in the batch."""
        starts = None if batch.starts is None else batch.starts.to(self._device)
        waveform, _, errors = decode_flac(
            batch.data.to(self._device, non_blocking=True),
            batch.offsets.to(self._device),
            batch.samples,
            starts=starts,
        )
        self._used_by_default(waveform)
        # This waits for the GPU: the loader needs the errors now, to replace the clips.
        clips = zip(batch.items, errors.tolist(), waveform.split(batch.samples.tolist()), strict=True)
        return [(item, clip) for item, error, clip in clips if not error]

    def _moved(self, waveform: Tensor) -> Tensor:
        """The waveform on the device."""
        if waveform.device == self._device:
            return waveform
        moved = waveform.to(self._device, non_blocking=True)
        self._used_by_default(moved)
        return moved

    def _used_by_default(self, waveform: Tensor) -> None:
        """Keeps the memory until the default stream has done what is queued when the last reference ends."""
        if self._stream is not None:
            waveform.record_stream(torch.cuda.default_stream(self._device))
