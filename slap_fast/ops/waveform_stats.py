"""Peak, energy and bad samples of each clip of a packed waveform, in one pass.

    stats = waveform_stats(waveform, cu_seqlens)    # [S] float32, [N + 1] int64
    stats.peak          # [N] float32, the largest |x|
    stats.mean_square   # [N] float64, the mean of x * x; 10 * log10 of it is the level in dB of full scale
    stats.nonfinite     # [N] int64, samples that are NaN or infinite; the other two leave them out

A clip without a finite sample has peak 0 and mean square 0. Sums are in float64. With the native backend the result of
a clip is the same bits in any batch, for any number of threads and any instruction set. Not differentiable: the results
carry no gradient.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import dispatch
from slap_fast.ops.custom_op import custom_op


class WaveformStats(NamedTuple):
    """Of each clip: `peak` `[N]` float32, `mean_square` `[N]` float64, `nonfinite` `[N]` int64."""

    peak: Tensor
    mean_square: Tensor
    nonfinite: Tensor


@custom_op("slap_fast::waveform_stats")
def _waveform_stats(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _BACKENDS[backend](waveform, cu_seqlens)


@_waveform_stats.register_fake
def _(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_stats(waveform, cu_seqlens)


def _empty_stats(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    clips = cu_seqlens.shape[0] - 1
    return (
        waveform.new_empty(clips),
        waveform.new_empty(clips, dtype=torch.float64),
        waveform.new_empty(clips, dtype=torch.int64),
    )


def _native(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    module = native.require()
    peak, mean_square, nonfinite = _empty_stats(waveform, cu_seqlens)
    module.waveform_stats(
        waveform=waveform.data_ptr(),
        total=waveform.numel(),
        cu_seqlens=cu_seqlens.data_ptr(),
        clips=peak.numel(),
        peak=peak.data_ptr(),
        mean_square=mean_square.data_ptr(),
        nonfinite=nonfinite.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return peak, mean_square, nonfinite


def _torch(waveform: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = waveform.numel()
    # Reading the offsets would stall a GPU: there, malformed ones are made harmless, and told by NaN.
    offsets = cu_seqlens.clamp(0, total).cummax(0).values
    wrong = (offsets != cu_seqlens).any() | (offsets[0] != 0) | (offsets[-1] != total)
    if waveform.device.type == "cpu" and wrong:
        raise ValueError(_describe_offsets(cu_seqlens.tolist(), total))

    finite = waveform.isfinite()
    magnitude = torch.where(finite, waveform, 0).abs()
    good = _segment_sum(finite.double(), offsets)
    energy = _segment_sum(magnitude.double().square_(), offsets)
    peak = torch.segment_reduce(magnitude, "max", offsets=offsets, unsafe=True, initial=0.0)
    peak = torch.where(wrong, torch.nan, peak)
    mean_square = torch.where(wrong, torch.nan, energy / good.clamp(min=1))
    return peak, mean_square, offsets.diff() - good.long()


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    return torch.segment_reduce(values, "sum", offsets=offsets, unsafe=True, initial=0.0)


def _describe_offsets(offsets: list[int], total: int) -> str:
    if offsets[0] != 0:
        return f"cu_seqlens[0] is {offsets[0]}; it must be 0"
    for item, (begin, end) in enumerate(pairwise(offsets)):
        if end < begin:
            return f"cu_seqlens[{item + 1}] is {end}, below cu_seqlens[{item}] = {begin}; it must not fall"
    return f"cu_seqlens ends at {offsets[-1]}, but the waveform has {total} samples"


_BACKENDS = {"native": _native, "torch": _torch}


def _not_on_cpu(*, device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"the waveform is on {device}; native code reads CPU memory"


dispatch.register(
    "waveform_stats",
    [
        dispatch.Backend("native", unavailable=native.unavailable, rejects=_not_on_cpu),
        dispatch.Backend("torch"),
    ],
)


def waveform_stats(waveform: Tensor, cu_seqlens: Tensor, *, backend: str = "auto") -> WaveformStats:
    """Peak |x|, mean square and count of non-finite samples of each clip.

    Args:
        waveform: `[S]` float32, contiguous, N clips end to end.
        cu_seqlens: `[N + 1]` int64, contiguous, on the same device: rises from 0 to S.
        backend: "auto", "native" (CPU) or "torch".

    Raises:
        ValueError: a wrong dtype, shape, device or layout, a backend that cannot serve, or, on the CPU, a malformed
            `cu_seqlens`. On a GPU the offsets are not read, and malformed ones give NaN.
    """
    for name, tensor, dtype in (("waveform", waveform, torch.float32), ("cu_seqlens", cu_seqlens, torch.int64)):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype}; it must be {dtype}")
        if tensor.dim() != 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must have one dimension")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous (stride {tensor.stride(0)}); call .contiguous() first")
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens is empty; for N clips it has N + 1 entries, the first of them 0")
    if cu_seqlens.device != waveform.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, the waveform on {waveform.device}")
    chosen = dispatch.select("waveform_stats", backend, device=waveform.device)
    return WaveformStats(*_waveform_stats(waveform.detach(), cu_seqlens, chosen))
