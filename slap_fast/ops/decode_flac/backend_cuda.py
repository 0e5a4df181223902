"""CUDA backend of the native module: files in GPU memory, one launch on the current stream."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.decode_flac.backend_native import batch_arguments
from slap_fast.ops.decode_flac.call import FlacCall, empty_result


def unavailable() -> str | None:
    """Why the kernel cannot run on this machine; None if it can."""
    reason = native.unavailable()
    if reason is not None:
        return reason
    module = native.require()
    if not hasattr(module, "cuda_decode_flac"):
        return (
            "the native module is built without CUDA: put nvcc on PATH, set SLAP_FAST_CUDA=1, and reinstall slap-fast"
        )
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    reason = module.cuda_unavailable()
    return f"no usable GPU: {reason}" if reason else None


def rejects(*, device: torch.device) -> str | None:
    """Why the kernel cannot serve files on `device`; None if it can."""
    return None if device.type == "cuda" else f"the files are on {device}; the CUDA kernel reads GPU memory"


def decode(call: FlacCall) -> tuple[Tensor, Tensor]:
    """See `Backend.decode`."""
    waveform, errors = empty_result(call)
    arguments = batch_arguments(call, waveform, errors)
    module = native.require()
    workspace = call.data.new_empty(
        module.cuda_flac_workspace(
            files=arguments["files"], rows=call.rows, channels=call.channels, dtype=arguments["dtype"]
        )
    )
    module.cuda_decode_flac(
        **arguments,
        workspace=workspace.data_ptr(),
        device=call.data.device.index,
        stream=torch.cuda.current_stream(call.data.device).cuda_stream,
    )
    return waveform, errors
