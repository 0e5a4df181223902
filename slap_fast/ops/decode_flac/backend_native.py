"""Native backend, CPU: SIMD over frames, threads over files and over the frames of long files."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.decode_flac.call import DTYPES, VERIFY, FlacCall, empty_result

unavailable = native.unavailable


def rejects(*, device: torch.device) -> str | None:
    """Why native code cannot serve files on `device`; None if it can."""
    return None if device.type == "cpu" else f"the files are on {device}; native code reads CPU memory"


def decode(call: FlacCall) -> tuple[Tensor, Tensor]:
    """See `Backend.decode`."""
    waveform, errors = empty_result(call)
    native.require().decode_flac(**batch_arguments(call, waveform, errors), threads=torch.get_num_threads())
    return waveform, errors


def batch_arguments(call: FlacCall, waveform: Tensor, errors: Tensor) -> dict[str, int]:
    """Arguments of the native functions for CPU and GPU."""
    return {
        "data": call.data.data_ptr(),
        "bytes": call.data.numel(),
        "offsets": call.offsets.data_ptr(),
        "files": errors.numel(),
        "starts": 0 if call.starts is None else call.starts.data_ptr(),
        "cu_seqlens": call.cu_seqlens.data_ptr(),
        "rows": call.rows,
        "channels": call.channels,
        "dtype": DTYPES.index(call.dtype),
        "output": waveform.data_ptr(),
        "errors": errors.data_ptr(),
        "verify": VERIFY.index(call.verify),
    }
