"""`decode_flac_into`: native decoding into memory of the caller, such as the reused buffers of a loader."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.decode_flac.backend_native import batch_arguments
from slap_fast.ops.decode_flac.call import FlacCall, check, layout, packed_files


def decode_flac_into(
    waveform: Tensor,
    data: Tensor,
    offsets: Tensor,
    samples: Tensor,
    *,
    starts: Tensor | None = None,
    verify: str = "crc",
    threads: int,
) -> Tensor:
    """Decodes N mono FLAC files into `waveform`, as `decode_flac` does by its native backend.

    Args:
        waveform: `[T]` float32 on the CPU, contiguous, with T the sum of `samples`; overwritten.
        data: `[B]` uint8 on the CPU, the files end to end.
        offsets: `[N + 1]` int64 or int32, rising from 0 to B.
        samples: `[N]` int64 on the CPU, the number of samples to decode of each file.
        starts, verify: see `decode_flac`.
        threads: CPU threads.

    Returns:
        `[N]` int32, a `FlacError` for each file. A file with an error has zeros for samples.

    Raises:
        ValueError: a wrong dtype, shape or device, malformed offsets, or `threads` is not positive.
        CannotServeError: the native module is not available.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    data, offsets = packed_files(data, offsets)
    cu_seqlens, rows = layout(samples, None, offsets.shape[0] - 1, data.device)
    call, _ = check(FlacCall(data, offsets, starts, cu_seqlens, rows, 1, torch.float32, verify), "native")
    if waveform.dtype != torch.float32 or tuple(waveform.shape) != (rows,) or waveform.device.type != "cpu":
        raise ValueError(
            f"waveform is {waveform.dtype} of shape {tuple(waveform.shape)} on {waveform.device}; pass torch.float32 "
            f"of shape ({rows},), the sum of samples, on the CPU"
        )
    if not waveform.is_contiguous():
        raise ValueError("waveform is not contiguous; pass a contiguous tensor")
    errors = torch.empty(samples.shape[0], dtype=torch.int32)
    native.require().decode_flac(**batch_arguments(call, waveform, errors), threads=threads)
    return errors
