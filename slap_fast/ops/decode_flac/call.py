"""Arguments and result of `decode_flac`, input validation, backend selection, and the backend protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.packed import checked_offsets

DTYPES = (torch.float32, torch.int32, torch.int16)
VERIFY = ("none", "crc", "md5")


class DecodedFlac(NamedTuple):
    """Samples of N files end to end.

    Attributes:
        waveform: `[T]`, or `[T, channels]` if there is more than one channel.
        cu_seqlens: `[N + 1]` int64, where the samples of each file are.
        errors: `[N]` int32, a `FlacError` for each file; 0 if it is intact. Another one has zeros for samples.
    """

    waveform: Tensor
    cu_seqlens: Tensor
    errors: Tensor


class FlacCall(NamedTuple):
    """Arguments of the op, all tensors on one device.

    Attributes:
        data: `[B]` uint8, N files end to end.
        offsets: `[N + 1]` int64, where each file is in `data`.
        starts: `[N]` int64, the first sample of each file that is wanted; None: whole files.
        cu_seqlens: `[N + 1]` int64, where the samples of each file go.
        rows: `cu_seqlens[N]`, on the host.
        channels: of every file.
        dtype: float32, int32 or int16.
        verify: "none", "crc" or "md5".
    """

    data: Tensor
    offsets: Tensor
    starts: Tensor | None
    cu_seqlens: Tensor
    rows: int
    channels: int
    dtype: torch.dtype
    verify: str


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated, except offsets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def decode(self, call: FlacCall) -> tuple[Tensor, Tensor]:
        """`waveform` and `errors` of `DecodedFlac`."""


def empty_result(call: FlacCall) -> tuple[Tensor, Tensor]:
    """Uninitialized tensors for `waveform` and `errors`."""
    shape = (call.rows,) if call.channels == 1 else (call.rows, call.channels)
    return (
        call.data.new_empty(shape, dtype=call.dtype),
        call.data.new_empty(call.offsets.shape[0] - 1, dtype=torch.int32),
    )


def packed_files(data: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous bytes and contiguous int64 offsets; raises ValueError."""
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.dim() != 1:
        what = f"{data.dtype} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data is {what}; pass a torch.uint8 tensor of one dimension with the files end to end")
    offsets = checked_offsets("offsets", offsets, data.shape[0], data.device, torch.int64, of="bytes")
    return data.contiguous(), offsets.contiguous()


def layout(
    samples: Tensor | Sequence[int], total_samples: int | None, files: int, device: torch.device
) -> tuple[Tensor, int]:
    """`cu_seqlens` on `device` and its last value; raises ValueError."""
    if not isinstance(samples, Tensor):
        samples = torch.tensor(samples, dtype=torch.int64)
    if samples.dtype not in (torch.int64, torch.int32) or tuple(samples.shape) != (files,):
        raise ValueError(
            f"samples is {samples.dtype} of shape {tuple(samples.shape)}; pass int64 of shape ({files},), one a file"
        )
    if samples.device.type == "cpu" and not torch.compiler.is_compiling() and files and int(samples.min()) < 0:
        raise ValueError(f"samples has {int(samples.min())}; a number of samples cannot be negative")
    cu_seqlens = torch.nn.functional.pad(samples.to(torch.int64).cumsum(0), (1, 0))
    if total_samples is None:
        if samples.device.type != "cpu":
            raise ValueError("samples are on a GPU; pass total_samples, their sum, which is not read back")
        total_samples = int(cu_seqlens[-1])
    return cu_seqlens.to(device, non_blocking=True), total_samples


def validate(call: FlacCall) -> FlacCall:
    """The call with contiguous int64 offsets; raises the ValueErrors of `decode_flac`."""
    data, offsets = packed_files(call.data, call.offsets)
    files = offsets.shape[0] - 1
    if call.dtype not in DTYPES:
        raise ValueError(f"dtype is {call.dtype}; choose torch.float32, torch.int32 or torch.int16")
    if call.verify not in VERIFY:
        raise ValueError(f"verify is {call.verify!r}; choose 'none', 'crc' or 'md5'")
    if not 1 <= call.channels <= 8:
        raise ValueError(f"channels is {call.channels}; FLAC has 1 to 8")
    if call.rows < 0:
        raise ValueError(f"total_samples is {call.rows}; it cannot be negative")
    cu_seqlens = checked_offsets("cu_seqlens", call.cu_seqlens, call.rows, data.device, torch.int64, of="samples")
    if cu_seqlens.shape[0] != files + 1:
        raise ValueError(f"cu_seqlens has {cu_seqlens.shape[0]} offsets for {files} files; it must have {files + 1}")
    starts = call.starts
    if starts is not None:
        if starts.dtype not in (torch.int64, torch.int32) or tuple(starts.shape) != (files,):
            raise ValueError(
                f"starts is {starts.dtype} of shape {tuple(starts.shape)}; pass int64 of shape ({files},): one a file"
            )
        if starts.device != data.device:
            raise ValueError(f"starts is on {starts.device}, data on {data.device}; move it there")
        if call.verify == "md5":
            raise ValueError("verify='md5' needs whole files; leave out starts, or choose verify='crc'")
        starts = starts.to(torch.int64).contiguous()
    if call.verify == "md5" and call.dtype == torch.int16:
        raise ValueError("verify='md5' needs all bits of a sample; choose dtype=torch.float32 or torch.int32")
    return call._replace(data=data, offsets=offsets, starts=starts, cu_seqlens=cu_seqlens.contiguous())


def select(call: FlacCall, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("decode_flac", requested, device=call.data.device)


def check(call: FlacCall, backend: str) -> tuple[FlacCall, str]:
    """Arguments of the op, validated; raises ValueError."""
    call = validate(call)
    return call, select(call, backend)
