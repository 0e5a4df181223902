"""FLAC files in memory to packed samples, on the CPU or on a GPU, exactly those of libFLAC.

    info = flac_info(data, offsets)                                    # what the headers say, on the CPU
    decoded = decode_flac(data, offsets, info.samples)                 # data [B] uint8: N files end to end
    decoded.waveform, decoded.cu_seqlens, decoded.errors               # [T] float32, [N + 1] int64, [N] int32

RFC 9639 up to 24 bits a sample: every subframe type, stereo decorrelation, wasted bits, both Rice methods, fixed and
variable block sizes. A damaged file gets its `FlacError` and zeros for samples; it changes no other file, and no byte
outside it is read. Native code is stricter than libFLAC, which skips damage between frames: a file that it decodes has
the same samples there.

A file with a seek point at every frame, as `slap-fast prepare` writes them, is decoded on a GPU by a thread a frame,
another file by a single thread. Not differentiable: bytes have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.decode_flac import backend_cuda, backend_native, backend_soundfile
from slap_fast.ops.decode_flac.call import Backend, DecodedFlac, FlacCall, check, empty_result, layout, packed_files
from slap_fast.ops.decode_flac.errors import FlacError
from slap_fast.ops.decode_flac.info import FlacInfo, flac_info, samples_by_headers

__all__ = ["DecodedFlac", "FlacError", "FlacInfo", "decode_flac", "flac_info"]

# In order of preference.
BACKENDS: dict[str, Backend] = {"cuda": backend_cuda, "native": backend_native, "soundfile": backend_soundfile}
dispatch.register(
    "decode_flac",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::decode_flac", check=check)
def _decode_flac(call: FlacCall, backend: str) -> tuple[Tensor, Tensor]:
    return BACKENDS[backend].decode(call)


@_decode_flac.register_fake
def _(call: FlacCall, backend: str) -> tuple[Tensor, Tensor]:
    return empty_result(call)


def decode_flac(
    data: Tensor,
    offsets: Tensor,
    samples: Tensor | Sequence[int] | None = None,
    *,
    starts: Tensor | None = None,
    channels: int = 1,
    dtype: torch.dtype = torch.float32,
    verify: str = "crc",
    total_samples: int | None = None,
    backend: str = "auto",
) -> DecodedFlac:
    """Decode N FLAC files.

    Args:
        data: `[B]` uint8 on the CPU or a GPU, the files end to end.
        offsets: `[N + 1]` int64 or int32 on the same device, rising from 0 to B.
        samples: for each file the number of samples (of each channel) to decode, best on the CPU. Without `starts` a
            file must have exactly as many. None, on the CPU: by the headers, each within what its bytes can hold.
        starts: `[N]` int64, the first sample wanted of each file; samples after the wanted ones are not checked, and
            with a seek table only the frames that hold them are decoded. None: whole files.
        channels: of every file, 1 to 8.
        dtype: float32 in [-1, 1), or int32 or int16, scaled to the range of the dtype as by soundfile.
        verify: "crc" compares the CRC-16 of each frame, "md5" also the MD5 of all samples where a file has one (slow
            on a GPU), "none" neither; headers are always checked.
        total_samples: the sum of `samples`, for calls whose shapes are compiled or whose `samples` are on a GPU.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `DecodedFlac`: packed samples, their offsets, and a `FlacError` for each file.

    Raises:
        ValueError: a wrong dtype, shape or device, a backend that cannot serve, or, on the CPU, malformed offsets.
            Offsets on a GPU are not read back; what they point outside of is not read or written.
    """
    data, offsets = packed_files(data, offsets)
    if samples is None:
        samples = samples_by_headers(data, offsets, starts)
    files = offsets.shape[0] - 1
    cu_seqlens, rows = layout(samples, total_samples, files, data.device)
    call = FlacCall(data, offsets, starts, cu_seqlens, rows, channels, dtype, verify)
    waveform, errors = _decode_flac(*check(call, backend))
    return DecodedFlac(waveform, cu_seqlens, errors)
